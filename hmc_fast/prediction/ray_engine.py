"""Chunks as tasks of Ray core, on this machine or on a cluster.

A task only reads: it gets a chunk's films and returns their scores. The command that asked for them
writes the part files, so whatever dies, a part is whole or not there. Ray repeats the task of a
worker or a node that died. Ray Data is not used: after a killed driver it left more rows than
there were films.
"""

import os
import socket
import warnings
from collections.abc import Iterator, Sequence
from contextlib import chdir
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from hmc_fast.data.limits import pixel_budget
from hmc_fast.environment import git_revision, installed_version
from hmc_fast.errors import UserError
from hmc_fast.prediction.engine import OnFilms
from hmc_fast.prediction.manifest import Chunk, Entry
from hmc_fast.prediction.recipe import Recipe
from hmc_fast.prediction.scores import FilmScore, Scorer

PACKAGE_ROOT = Path(__file__).parents[2]
RAY = "ray"
SCHEME = "ray://"
ADDRESS_VARIABLE = "RAY_ADDRESS"
DEVICES = ("auto", "cpu", "cuda")
RETRIES = 10
"""So often is a chunk scored anew whose worker or node died; a film may be what kills them."""
OBJECT_STORE_BYTES = 100 * 2**20
"""Of a Ray started here: scores are small."""
QUIET = {
    "RAY_USAGE_STATS_ENABLED": "0",  # Ray would report its use to its makers
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # a Ray started here listens on loopback alone
}


@dataclass(frozen=True)
class RayEngine:
    """Scores chunks side by side, each on one CPU by one thread, or on one GPU.

    Films and checkpoints must have the same paths on every node.

    Args:
        recipe: how to make a scorer; with the device ``auto``, GPUs are used where there are any.
        name: ``ray`` for the cluster that ``RAY_ADDRESS`` names, or else for a Ray of its own on
            this machine; ``ray://host:port`` for the client server of a cluster.
    """

    recipe: Recipe
    name: str

    def scores(
        self, chunks: Sequence[Chunk], on_films: OnFilms
    ) -> Iterator[tuple[Chunk, list[FilmScore]]]:
        """The chunks as they get ready.

        Raises :class:`UserError` where there is no Ray, no cluster or no room on it, or where a
        node cannot score.
        """
        if not chunks:
            return
        ray = _ray()
        _start(ray, self.name)
        try:
            yield from self._scores(ray, chunks, on_films)
        except ray.exceptions.RayTaskError as error:
            if isinstance(error.cause, UserError):
                raise UserError(str(error.cause)) from None
            raise
        except (ray.exceptions.RayError, ConnectionError) as error:
            raise UserError(
                f"Ray stopped ({_first_line(error)}); the same command goes on with what is missing"
            ) from None
        finally:
            ray.shutdown()

    def _scores(
        self, ray: Any, chunks: Sequence[Chunk], on_films: OnFilms
    ) -> Iterator[tuple[Chunk, list[FilmScore]]]:
        device = _device(self.recipe.device, ray.cluster_resources())
        task = ray.remote(_score_chunk).options(
            num_cpus=1, num_gpus=int(device == "cuda"), max_retries=RETRIES
        )
        recipe, folder = replace(self.recipe, device=device), str(Path.cwd())
        waiting = {task.remote(recipe, folder, release(), chunk.entries): chunk for chunk in chunks}
        while waiting:
            (ready,), _ = ray.wait(list(waiting), num_returns=1)
            chunk = waiting.pop(ready)
            scores = ray.get(ready)
            on_films(len(scores))
            yield chunk, scores


def check_engine(name: str, device: str) -> None:
    """Raises :class:`UserError` for a name that is no engine, or a device that Ray chooses."""
    if name == "local":
        return
    if name != RAY and not (name.startswith(SCHEME) and name.removeprefix(SCHEME)):
        raise UserError(f"unknown engine {name!r}; choose local, ray or ray://HOST:PORT")
    if device not in DEVICES:
        raise UserError(f"--device {device}: Ray takes {', '.join(DEVICES)}, and picks the GPU")
    _ray()


def release() -> tuple[str | None, ...]:
    """What has to be the same wherever films of one table are scored."""
    return installed_version("hmc-fast"), git_revision(), installed_version("torch")


def _ray() -> Any:
    for variable, value in QUIET.items():
        os.environ.setdefault(variable, value)  # read when Ray is imported
    try:
        import ray
    except ImportError as error:
        raise UserError(f"--engine ray needs Ray ({error}); pip install 'hmc-fast[ray]'") from None
    return ray


def _start(ray: Any, name: str) -> None:
    """Raises :class:`UserError` where there is no cluster of that name."""
    given: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if name != RAY:
        given["address"] = name
    elif not os.environ.get(ADDRESS_VARIABLE):
        given |= {
            "address": "local",
            "include_dashboard": False,
            "object_store_memory": OBJECT_STORE_BYTES,
            "_node_ip_address": "127.0.0.1",
        }
    try:
        # Workers import from where Ray is started first, whatever lies there by the same name.
        with chdir(PACKAGE_ROOT), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # what keeps Ray from starting is raised as well
            ray.init(**given)
    except (ray.exceptions.RayError, OSError, RuntimeError, ValueError) as error:
        raise UserError(f"--engine {name}: no Ray to work with ({_first_line(error)})") from None


def _device(asked: str, resources: dict[str, float]) -> str:
    """``cpu`` or ``cuda``; raises :class:`UserError` where the cluster has none, now."""
    gpus, cpus = resources.get("GPU", 0), resources.get("CPU", 0)
    device = asked if asked != "auto" else "cuda" if gpus >= 1 else "cpu"
    if (gpus if device == "cuda" else cpus) < 1:
        raise UserError(f"Ray has {gpus:.0f} GPUs and {cpus:.0f} CPUs: none for --device {asked}")
    return device


def _first_line(error: BaseException) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0]


def _score_chunk(
    recipe: Recipe, folder: str, expected: tuple[str | None, ...], entries: tuple[Entry, ...]
) -> list[FilmScore]:
    """Runs on a node. ``folder`` is where paths start.

    Raises :class:`UserError` where the node has other software, or sees none of the films.
    """
    node = socket.gethostname()
    if (found := release()) != expected:
        raise UserError(f"node {node} has hmc-fast, revision, torch {found}, needs {expected}")
    try:
        os.chdir(folder)
    except OSError as error:
        raise UserError(f"node {node}: {folder} cannot be entered ({error.strerror})") from None
    films = [entry.path for entry in entries if not entry.problem]
    if films and not any(Path(film).exists() for film in films):
        raise UserError(f"node {node} does not see {films[0]}; films need a shared file system")
    with pixel_budget(recipe.max_pixels):
        return _scorer(recipe).score(entries)


@lru_cache(maxsize=1)
def _scorer(recipe: Recipe) -> Scorer:
    """Made once in a worker, for all its chunks."""
    return recipe.scorer(recipe.load())
