"""Checkpoints: one safetensors file with the parameters and all that is needed to use them."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from safetensors.torch import save_file

from hmc_fast.data import Preprocessing
from hmc_fast.data.tasks import task_by_name
from hmc_fast.errors import UserError
from hmc_fast.files import write_atomically
from hmc_fast.models import FilmModel, ModelConfig, build_model
from hmc_fast.models.weights import read_safetensors

METADATA_KEY = "hmc_fast"
FORMAT = 1


@dataclass(frozen=True)
class CheckpointMetadata:
    """What a checkpoint knows of itself.

    ``training_films`` maps the films it was trained on to digests of their pixels, so that an
    evaluation can tell seen films from unseen ones; ``training`` records settings and environment.
    ``bilateral`` says that films are compared with the other breast's, see
    :mod:`hmc_fast.evaluation.bilateral`.
    """

    model: ModelConfig
    task: str
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    training_films: dict[str, str]
    training: dict[str, Any]
    bilateral: bool = False

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            "model": self.model.to_json(),
            "task": self.task,
            "class_names": list(self.class_names),
            "preprocessing": self.preprocessing.to_json(),
            "training_films": self.training_films,
            "training": self.training,
            "bilateral": self.bilateral,
        }


class LoadedModel(NamedTuple):
    """A model in evaluation mode and its metadata."""

    model: FilmModel
    metadata: CheckpointMetadata


def save_checkpoint(path: Path, model: FilmModel, metadata: CheckpointMetadata) -> None:
    """Write a checkpoint atomically; raises :class:`UserError` where the disk refuses."""
    tensors = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    description = {METADATA_KEY: json.dumps(metadata.to_json(), allow_nan=False)}

    def write(temporary: Path) -> None:
        try:
            save_file(tensors, temporary, metadata=description)
        except Exception as error:  # safetensors wraps the system's errors in its own
            raise OSError(str(error)) from None
        temporary.chmod(0o644)

    write_atomically(path, write)


def load_model(
    path: str | Path,
    *,
    expected_model: str | None = None,
    backend: str = "auto",
    device: str | torch.device = "cpu",
) -> LoadedModel:
    """The model of a checkpoint, in evaluation mode on ``device``.

    Args:
        path: written by :func:`save_checkpoint`.
        expected_model: refuse a checkpoint of any other model.
        backend: as in :func:`hmc_fast.create_model`.
        device: where the parameters go.

    Raises:
        UserError: the file is missing, damaged, pickled, no hmc-fast checkpoint, or of another
            model.
    """
    path = Path(path)
    tensors, description = read_safetensors(path)
    metadata = _metadata(path, description)
    if expected_model is not None and metadata.model.name != expected_model:
        raise UserError(
            f"{path}: is a checkpoint of {metadata.model.name}, but {expected_model} was asked for"
        )
    try:
        model = build_model(metadata.model, backend)
    except (KeyError, TypeError) as error:
        raise UserError(f"{path}: its description is damaged (problem with {error})") from None
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        first = str(error).splitlines()[1].strip() if "\n" in str(error) else str(error)
        raise UserError(
            f"{path}: its parameters are not those of {metadata.model.name} ({first})"
        ) from None
    return LoadedModel(model.to(device).eval(), metadata)


def load_ensemble(
    paths: Sequence[str | Path],
    *,
    backend: str = "auto",
    device: str | torch.device = "cpu",
) -> list[LoadedModel]:
    """The models of several checkpoints that are to be averaged, as of the folds of a study.

    Raises:
        UserError: as :func:`load_model`, or the checkpoints differ in task or preprocessing.
    """
    members = [load_model(path, backend=backend, device=device) for path in paths]
    first = members[0].metadata
    for path, member in zip(paths, members, strict=True):
        other = member.metadata
        if (other.task, other.preprocessing, other.bilateral) != (
            first.task,
            first.preprocessing,
            first.bilateral,
        ):
            raise UserError(
                f"{path}: is of another task, preprocessing or rule for two breasts than "
                f"{paths[0]}, so the two cannot be averaged"
            )
    return members


def _metadata(path: Path, description: dict[str, str]) -> CheckpointMetadata:
    if METADATA_KEY not in description:
        raise UserError(
            f"{path}: is a safetensors file but no hmc-fast checkpoint; "
            "a pretrained trunk goes to --weights"
        )
    try:
        values = json.loads(description[METADATA_KEY])
        if values["format"] != FORMAT:
            raise UserError(
                f"{path}: has checkpoint format {values['format']}, this release reads {FORMAT}"
            )
        class_names = task_by_name(values["task"]).class_names
        config = ModelConfig.from_json(values["model"])
        if list(class_names) != values["class_names"] or len(class_names) != config.num_classes:
            raise ValueError("the classes, which are not those of the task")
        return CheckpointMetadata(
            config,
            values["task"],
            class_names,
            Preprocessing.from_json(values["preprocessing"]),
            dict(values["training_films"]),
            dict(values["training"]),
            bool(values.get("bilateral", False)),
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path}: its description is damaged (problem with {error})") from None
