"""Checkpoints: one safetensors file with the parameters and all that is needed to use them."""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch

from hmc_fast.data import Preprocessing
from hmc_fast.data.patients import PatientKeys
from hmc_fast.data.tasks import task_by_name
from hmc_fast.errors import UserError
from hmc_fast.models import FilmModel, ModelConfig, build_model, model_entry
from hmc_fast.schema import STRICT, parse_json
from hmc_fast.tensor_files import read_safetensors, write_safetensors

METADATA_KEY = "hmc_fast"
FORMAT = 1


@dataclass(frozen=True)
class OperatingPoint:
    """The probability of class 1 from which on a film is called positive.

    Chosen for a specificity of at least ``at_specificity`` on ``films`` films, on which it has
    ``specificity`` and ``sensitivity``, all in 0…1.
    """

    threshold: float
    at_specificity: float
    specificity: float
    sensitivity: float
    films: int

    __pydantic_config__ = STRICT

    def __post_init__(self) -> None:
        """Raises ``ValueError`` for a share outside 0…1."""
        shares = (self.threshold, self.at_specificity, self.specificity, self.sensitivity)
        if not all(0 <= share <= 1 for share in shares):
            raise ValueError("its operating point is not in 0…1")


@dataclass(frozen=True)
class CheckpointMetadata:
    """What a checkpoint knows of itself.

    ``training_films`` maps the films it was trained on to digests of their pixels, and
    ``training_patients`` knows whose they are, so that an evaluation can tell seen patients from
    unseen ones; ``training`` records settings and environment.
    ``bilateral`` says that films are compared with the other breast's, see
    :mod:`hmc_fast.evaluation.bilateral`. ``operating_point`` is None where training chose none.
    """

    model: ModelConfig
    task: str
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    training_films: dict[str, str]
    training: dict[str, Any]
    bilateral: bool = False
    training_patients: PatientKeys = field(default_factory=PatientKeys)
    operating_point: OperatingPoint | None = None

    __pydantic_config__ = STRICT

    def __post_init__(self) -> None:
        """Raises ``ValueError`` where parts contradict each other."""
        try:
            classes = task_by_name(self.task).class_names
            expected = model_entry(self.model.name).config
        except UserError as error:
            raise ValueError(str(error)) from None
        if classes != self.class_names or len(classes) != self.model.num_classes:
            raise ValueError("its classes are not those of its task")
        if _parts(self.model) != _parts(expected):
            raise ValueError(f"it describes another architecture than {self.model.name}")

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
            "training_patients": self.training_patients.to_json(),
            "operating_point": self.operating_point and asdict(self.operating_point),
        }


class LoadedModel(NamedTuple):
    """A model in evaluation mode and its metadata."""

    model: FilmModel
    metadata: CheckpointMetadata


def save_checkpoint(path: Path, model: FilmModel, metadata: CheckpointMetadata) -> None:
    """Write a checkpoint atomically; raises :class:`UserError` where the disk refuses."""
    tensors = {name: t.detach().cpu().contiguous() for name, t in model.state_dict().items()}
    description = {METADATA_KEY: json.dumps(metadata.to_json(), allow_nan=False)}
    write_safetensors(path, tensors, description)


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
    model = build_model(metadata.model, backend)
    for name, parameter in model.state_dict().items():
        if name in tensors and tensors[name].dtype != parameter.dtype:
            raise UserError(
                f"{path}: {name} is of {tensors[name].dtype}, not {parameter.dtype}; it is damaged "
                "or was converted, and an export reads the original"
            )
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
    values = parse_json(dict[str, Any], description[METADATA_KEY], str(path))
    if (release := values.pop("format", None)) != FORMAT:
        raise UserError(f"{path}: has checkpoint format {release}, this release reads {FORMAT}")
    return parse_json(CheckpointMetadata, json.dumps(values), str(path))


def _parts(model: ModelConfig) -> tuple[object, ...]:
    """What a model's name promises; the stages with attention can be chosen."""
    return model.trunk, bool(model.hsa_stages), model.msca, model.lesion_head
