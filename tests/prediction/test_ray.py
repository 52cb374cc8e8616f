"""Ray: workers, nodes and drivers are killed, and the table is that of an undisturbed run."""

import csv
import json
import os
import random
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from importlib.util import find_spec
from pathlib import Path
from tempfile import mkdtemp

import psutil
import pytest
import torch
from dicom_phantoms import small_checkpoint
from namespaces import Namespace, namespace

from hmc_fast.cli.app import run
from hmc_fast.data import Preprocessing, write_phantoms
from hmc_fast.prediction import manifest

pytestmark = [
    pytest.mark.systems,
    pytest.mark.exhaustive,
    pytest.mark.skipif(find_spec("ray") is None, reason="needs the extra ray"),
]
SIZE = 256
SMALL_CHUNKS = """
from hmc_fast.cli.app import main
from hmc_fast.prediction import manifest
manifest.CHUNK_FILMS = 2
main()
"""
TASK = "ray::_score_chunk"
"""What Ray calls a worker that scores."""
READY_S = 120.0
KILLS = 10
PATIENTS_A_KILL = 30
"""So many that none of the killed commands has scored the last film; each is a chunk of its own."""
FILLS = 3
PAGE = 4096
"""The least that a file takes of the disk that runs full; a part takes no more."""


def wait_for(what: str, true: Callable[[], object]) -> None:
    deadline = time.monotonic() + READY_S
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.02)


class Command:
    """``predict`` in chunks of two films, and the table of a run that nobody disturbed."""

    def __init__(self, folder: Path, patients: int) -> None:
        self.folder = folder
        self.chunks = patients
        self.table = folder / "scores.csv"
        self.parts = folder / "scores.csv.parts"
        write_phantoms(folder / "films", patients=patients, size=64, seed=1)
        small_checkpoint(folder / "model.safetensors", Preprocessing.square(SIZE))
        whole, threads = folder / "whole.csv", torch.get_num_threads()
        torch.set_num_threads(1)  # as Ray's workers have
        try:
            assert run(self._words(whole)) == 0
        finally:
            torch.set_num_threads(threads)
        self.expected = whole.read_bytes()

    def _words(self, table: Path) -> list[str]:
        named = [str(self.folder / "films"), "--checkpoint", str(self.folder / "model.safetensors")]
        return ["predict", *named, "--out", str(table)]

    def start(
        self, inside: Namespace, engine: str, temporary: Path, **variables: str
    ) -> "subprocess.Popen[str]":
        words = [*self._words(self.table), "--engine", engine]
        return inside.start(
            [sys.executable, "-c", SMALL_CHUNKS, *words],
            {"RAY_TMPDIR": str(temporary)} | variables,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
        )

    def scored(self) -> int:
        return len(list(self.parts.glob("part-*")))

    def wait_for_a_part(self, process: "subprocess.Popen[str]") -> None:
        before = self.scored()
        wait_for("a part", lambda: self.scored() > before or process.poll() is not None)

    def assert_at_work(self, process: "subprocess.Popen[str]") -> None:
        assert process.poll() is None, process.communicate()
        assert self.scored() < self.chunks, "all was scored before the kill"

    def check(self, process: "subprocess.Popen[str]") -> None:
        """The command ends well, with each film once and with the bits of the undisturbed run."""
        _, said = process.communicate(timeout=2 * READY_S)
        assert process.returncode == 0, said
        assert self.table.read_bytes() == self.expected
        with self.table.open(newline="") as file:
            names = [row["file"] for row in csv.DictReader(file)]
        assert len(names) == len(set(names)) == 2 * self.chunks


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[[int], Command]:
    """The command for so many patients."""
    monkeypatch.setattr(manifest, "CHUNK_FILMS", 2)
    return lambda patients: Command(tmp_path, patients)


@pytest.fixture
def temporary() -> Iterator[Path]:
    """Ray's sockets need a short path."""
    folder = Path(mkdtemp(prefix="ray", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def inside() -> Iterator[Namespace]:
    with namespace() as made:
        yield made


def workers(inside: Namespace) -> list[psutil.Process]:
    return [p for p in inside.processes() if _title(p).startswith(TASK)]


def _title(process: psutil.Process) -> str:
    try:
        return " ".join(process.cmdline())
    except psutil.Error:
        return ""


def kill_a_worker(inside: Namespace, rng: random.Random) -> None:
    """Kill one that scores, at a random moment."""
    wait_for("a worker scores", lambda: workers(inside))
    time.sleep(rng.uniform(0, 2))
    found: list[psutil.Process] = []

    def at_work() -> bool:
        found[:] = workers(inside)
        return bool(found)

    wait_for("a worker scores", at_work)
    rng.choice(found).kill()


@pytest.mark.timeout(2400)
@pytest.mark.parametrize("kills", [1, KILLS])
def test_workers_and_drivers_are_killed(
    command: Callable[[int], Command], inside: Namespace, temporary: Path, kills: int
) -> None:
    """Ray of its own on this machine: it listens on loopback alone, and goes with its driver."""
    rng = random.Random(kills)
    predict = command(kills * PATIENTS_A_KILL)
    for _ in range(kills):
        process = predict.start(inside, "ray", temporary)
        kill_a_worker(inside, rng)
        assert inside.listening() == {"127.0.0.1"}
        predict.wait_for_a_part(process)
        predict.assert_at_work(process)
        process.kill()
        process.communicate()
        wait_for("Ray ends with its driver", lambda: not inside.processes())
    before = predict.scored()
    predict.check(predict.start(inside, "ray", temporary))
    record = json.loads((predict.parts / "record.json").read_text())
    assert record["engine"] == "ray"
    assert record["scored_now"] == 2 * (predict.chunks - before)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 1 MiB where the command keeps its parts."""
    folder = tmp_path / "scores.csv.parts"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)]
    if os.geteuid() or subprocess.run(mount, check=False).returncode:
        pytest.skip("needs the right to mount a disk")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.timeout(2400)
def test_the_disk_runs_full_while_parts_are_written(
    small_disk: Path, command: Callable[[int], Command], inside: Namespace, temporary: Path
) -> None:
    """Again and again, with room for a few parts more each time; then there is room for all."""
    rng = random.Random(0)
    predict = command(PATIENTS_A_KILL)
    shutil.copy(predict.folder / "whole.csv.parts" / manifest.MANIFEST_FILE, small_disk)
    ballast = small_disk / "ballast"
    for _ in range(FILLS):
        room, before = rng.randint(1, 5), predict.scored()
        ballast.write_bytes(b"")
        free = shutil.disk_usage(small_disk).free
        ballast.write_bytes(bytes(free - room * PAGE))
        process = predict.start(inside, "ray", temporary)
        _, said = process.communicate(timeout=2 * READY_S)
        assert process.returncode == 1
        assert "could not be written (No space left on device)" in said
        assert "Traceback" not in said
        assert predict.scored() == before + room
        assert not predict.table.exists()
        assert not list(small_disk.glob("*.tmp"))
        wait_for("Ray ends with its driver", lambda: not inside.processes())
    ballast.unlink()
    predict.check(predict.start(inside, "ray", temporary))


class Cluster:
    """A head and nodes, each with one CPU."""

    def __init__(self, inside: Namespace, temporary: Path) -> None:
        self.inside = inside
        self.variables = {"RAY_AUTH_MODE": "disabled"}
        self._temporary = str(temporary)
        self._start("--head", "--port=6379", "--ray-client-server-port=10001", cpus=1)

    def _start(self, *options: str, cpus: int) -> None:
        before = self._raylets()
        here = ("--node-ip-address=127.0.0.1", "--object-store-memory=100000000")
        self.inside.start(
            ["ray", "start", *options, *here, f"--num-cpus={cpus}", "--block"],
            {"RAY_TMPDIR": self._temporary, **self.variables},
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_for("a node starts", lambda: self._raylets() - before)
        (self.newest,) = self._raylets() - before

    def add_node(self) -> None:
        self._start("--address=127.0.0.1:6379", cpus=1)

    def kill_node(self) -> None:
        """The node that came last, with all that it runs."""
        for process in [self.newest, *self.newest.children(recursive=True)]:
            process.kill()

    def _raylets(self) -> set[psutil.Process]:
        return {p for p in self.inside.processes() if _title(p).split(" ")[0].endswith("/raylet")}


@pytest.mark.timeout(2400)
def test_nodes_are_killed(
    command: Callable[[int], Command], inside: Namespace, temporary: Path
) -> None:
    """The films of a node that is gone are scored by another, by either way to a cluster."""
    rng = random.Random(0)
    predict = command(3 * PATIENTS_A_KILL)
    cluster = Cluster(inside, temporary)
    ways = (("ray", {"RAY_ADDRESS": "127.0.0.1:6379"}), ("ray://127.0.0.1:10001", {}))
    for kill in range(KILLS):
        cluster.add_node()
        engine, address = ways[kill % 2]
        process = predict.start(inside, engine, temporary, **cluster.variables, **address)
        wait_for("two nodes score", lambda: len(workers(inside)) > 1)
        time.sleep(rng.uniform(0, 2))
        predict.assert_at_work(process)
        cluster.kill_node()
        predict.check(process)
        shutil.rmtree(predict.parts)
        predict.table.unlink()
