"""The sidecar of an artefact: what it is, what it needs, and whether the file is the one meant."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, TypeAdapter, ValidationError

from hmc_fast.checkpoint import CheckpointMetadata
from hmc_fast.data import Preprocessing
from hmc_fast.data.tasks import task_by_name
from hmc_fast.errors import UserError
from hmc_fast.export.attention import FORMS
from hmc_fast.files import read_json, write_atomically, write_json
from hmc_fast.models import ModelConfig

FORMAT = 1
INPUT_NAME = "images"
OUTPUT_NAME = "logits"
NUMBER_FORMATS = ("int8", "fp8")
"""Of quantised graphs."""
PLAIN_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9_.-]*")
"""A name that can be a folder, too."""
_CHUNK_BYTES = 2**22


@dataclass(frozen=True)
class Profile:
    """Batch sizes of an artefact: the smallest, the one to be fastest at, and the largest.

    Raises :class:`UserError` unless ``1 ≤ minimum ≤ optimum ≤ maximum``.
    """

    minimum: int = 1
    optimum: int = 8
    maximum: int = 64

    def __post_init__(self) -> None:
        if not 1 <= self.minimum <= self.optimum <= self.maximum:
            raise UserError(
                f"batch profile {self}: needs 1 <= min <= opt <= max, for example 1,8,64"
            )

    def __str__(self) -> str:
        return f"{self.minimum},{self.optimum},{self.maximum}"

    @classmethod
    def parse(cls, text: str) -> "Profile":
        """``"1,8,64"``; raises :class:`UserError` for anything else."""
        try:
            minimum, optimum, maximum = map(int, text.split(","))
        except ValueError:
            raise UserError(
                f"batch profile {text!r}: needs three whole numbers min,opt,max, for example 1,8,64"
            ) from None
        return cls(minimum, optimum, maximum)


@dataclass(frozen=True)
class FileIdentity:
    """Which file is meant: its name, size and SHA-256."""

    name: str
    size_bytes: Annotated[int, Field(ge=0)]
    sha256: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]

    @classmethod
    def of(cls, path: Path, name: str | None = None) -> "FileIdentity":
        """Identity of an existing file, under another name where one is given."""
        digest, size = hashlib.sha256(), 0
        with path.open("rb") as file:
            while chunk := file.read(_CHUNK_BYTES):
                digest.update(chunk)
                size += len(chunk)
        return cls(name or path.name, size, digest.hexdigest())

    @classmethod
    def of_bytes(cls, name: str, content: bytes) -> "FileIdentity":
        return cls(name, len(content), hashlib.sha256(content).hexdigest())


@dataclass(frozen=True)
class EngineInfo:
    """How an engine was built.

    ``flavour`` is ``tensorrt`` or ``tensorrt-rtx``, ``targets`` are architectures such as
    ``sm_89``, ``onnx`` is the graph it was built from, and ``plugin`` says that its attention is
    our kernels, in place of that graph's plain operations. The rest is what the builder's log says:
    bytes of activations at the largest batch, bytes of weights, how many attentions the graph has
    and how many of them run as one fused kernel; each is None where the log does not say.
    ``attention`` is the form of attention that the builder executes best, None without.
    """

    flavour: str
    version: str
    targets: tuple[Annotated[str, Field(pattern="^sm_[0-9]+$")], ...]
    version_compatible: bool
    hardware_compatible: bool
    onnx: FileIdentity
    plugin: bool = False
    activation_bytes: int | None = None
    weight_bytes: int | None = None
    attentions: int | None = None
    fused_attentions: int | None = None
    attention: str | None = None


@dataclass(frozen=True)
class Sidecar:
    """Everything known of an artefact.

    Args:
        kind: ``onnx`` or ``engine``.
        file: the artefact itself.
        checkpoint: where it came from; ``name`` is its path, relative to the artefact's folder.
        model: the model's configuration as JSON.
        task: name of the task.
        class_names: of the logits.
        preprocessing: from a film to the input.
        precision: ``fp32``, ``fp16`` or ``bf16``; quantised graphs are ``fp32`` in between.
        quantisation: None, or how it was quantised.
        opset: of the ONNX graph.
        profile: batch sizes.
        tensors: dtype and shape of input and output by name, the batch being ``"batch"``.
        engine: how an engine was built; None for ONNX.
        versions: of the packages that made it.
        verified: the last passed verification, or None.
        attention: the form of attention in the graph, one of
            :data:`hmc_fast.export.attention.FORMS`; None for a model without, or an older graph.
    """

    kind: Annotated[str, Field(pattern="^(onnx|engine)$")]
    file: FileIdentity
    checkpoint: FileIdentity
    model: dict[str, Any]
    task: str
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    precision: Annotated[str, Field(pattern="^(fp32|fp16|bf16)$")]
    quantisation: dict[str, Any] | None
    opset: int
    profile: Profile
    tensors: dict[str, dict[str, Any]]
    engine: EngineInfo | None
    versions: dict[str, str | None]
    verified: dict[str, Any] | None = None
    attention: str | None = None

    @property
    def numerics(self) -> str:
        """What decides the rounding: the quantisation's format, else the precision."""
        return str(self.quantisation["format"]) if self.quantisation else self.precision

    def to_json(self) -> dict[str, Any]:
        return {
            "format": FORMAT,
            **asdict(self),
            "preprocessing": self.preprocessing.to_json(),
        }

    @classmethod
    def from_json(cls, values: Any) -> "Sidecar":
        """The sidecar of parsed JSON.

        Raises ``ValueError`` or :class:`UserError` for values that :meth:`to_json` does not write.
        """
        if not isinstance(values, dict) or "format" not in values:
            raise ValueError("its format, which is missing")
        fields = {key: value for key, value in values.items() if key != "format"}
        # JSON's lists are tuples to a strict schema, Python's are not.
        text = json.dumps(fields, allow_nan=False)
        sidecar = TypeAdapter(cls).validate_json(text, strict=True, extra="forbid")
        _check_consistent(sidecar)
        return sidecar


def _check_consistent(sidecar: Sidecar) -> None:
    """Raises ``ValueError`` where parts of a sidecar contradict each other."""
    for file in (sidecar.file, *([sidecar.engine.onnx] if sidecar.engine else [])):
        if not file.name or Path(file.name).name != file.name or not file.name.isprintable():
            raise ValueError(f"file.name: {file.name!r} is no name of a file in the same folder")
    if sidecar.attention not in (None, *FORMS):
        raise ValueError(f"attention: is none of {', '.join(FORMS)}")
    config = json.dumps(sidecar.model, allow_nan=False)
    model = TypeAdapter(ModelConfig).validate_json(config, strict=True, extra="forbid")
    if not PLAIN_NAME.fullmatch(model.name):
        raise ValueError(f"model.name: {model.name!r} is no name of a model")
    if sidecar.class_names != task_by_name(sidecar.task).class_names:
        raise ValueError(f"class_names: are not those of the task {sidecar.task}")
    if model.num_classes != len(sidecar.class_names):
        raise ValueError(f"model.num_classes: the task has {len(sidecar.class_names)} classes")
    if sidecar.tensors != tensors_of(sidecar.preprocessing, len(sidecar.class_names)):
        raise ValueError("tensors: contradict the preprocessing or the classes")
    if (sidecar.kind == "engine") != (sidecar.engine is not None):
        raise ValueError(f"engine: contradicts the kind, {sidecar.kind}")
    if (
        sidecar.quantisation is not None
        and sidecar.quantisation.get("format") not in NUMBER_FORMATS
    ):
        raise ValueError(f"quantisation.format: is none of {', '.join(NUMBER_FORMATS)}")


def tensors_of(preprocessing: Preprocessing, classes: int) -> dict[str, dict[str, Any]]:
    """Dtype and shape of the input and the output of every artefact."""
    image = ["batch", 3, preprocessing.height, preprocessing.width]
    return {
        INPUT_NAME: {"dtype": "float32", "shape": image},
        OUTPUT_NAME: {"dtype": "float32", "shape": ["batch", classes]},
    }


def sidecar_path(artefact: Path) -> Path:
    """``model.engine`` has its sidecar in ``model.engine.json``."""
    return artefact.with_name(artefact.name + ".json")


def read_sidecar(artefact: Path) -> Sidecar:
    """The sidecar of ``artefact``, after checking that the file is the one it describes.

    Raises :class:`UserError` where either is missing, damaged, of another format, or they do not
    belong together.
    """
    if not artefact.is_file():
        raise UserError(
            f"{artefact}: {'is a folder' if artefact.is_dir() else 'no such file'}; name an ONNX "
            "file or an engine written by hmc-fast export"
        )
    path = sidecar_path(artefact)
    if not path.is_file():
        raise UserError(
            f"{artefact}: has no sidecar {path.name} beside it, so nothing is known of it; copy "
            "the sidecar too, or export the checkpoint again"
        )
    sidecar = read_description(path)
    check_file(artefact, sidecar.file, f"its sidecar {path.name}")
    return sidecar


def read_description(path: Path) -> Sidecar:
    """A sidecar by its own name; raises :class:`UserError` where it is none, or damaged."""
    values = read_json(path)
    if isinstance(values, dict) and values.get("format", FORMAT) != FORMAT:
        raise UserError(
            f"{path}: has format {str(values['format'])[:20]}, this release reads {FORMAT}; export "
            "the checkpoint again"
        )
    try:
        return Sidecar.from_json(values)
    except (ValueError, UserError) as error:
        raise UserError(
            f"{path}: is no sidecar of ours or is damaged (problem with {_reason(error)}); export "
            "the checkpoint again"
        ) from None


def _reason(error: Exception) -> str:
    """In one line."""
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False, include_input=False)[0]
        return f"{'.'.join(map(str, first['loc']))}: {first['msg']}"
    return " ".join(str(error).split())


def rebuild_command(sidecar: Sidecar, *, target: str | None = None) -> str:
    """The command line that makes the artefact again, for another ``target`` where one is given."""
    size = sidecar.preprocessing.height
    words = ["hmc-fast export", "onnx" if sidecar.engine is None else "tensorrt"]
    words += [sidecar.checkpoint.name, f"--precision {sidecar.precision}"]
    words += [f"--size {size}", f"--batch {sidecar.profile}"]
    if sidecar.engine is None and sidecar.attention == "equal-widths":
        words += ["--runtime tensorrt"]
    if sidecar.quantisation:
        words += [f"--quantise {sidecar.quantisation['format']} --calibration DIR"]
    if sidecar.engine:
        targets = target or ",".join(sidecar.engine.targets)
        words += [f"--flavour {sidecar.engine.flavour}", f"--target {targets}"]
        words += ["--plugin"] if sidecar.engine.plugin else []
    return " ".join(words)


def check_file(path: Path, expected: FileIdentity, source: str) -> None:
    """Raises :class:`UserError` where ``path`` is not the file that ``source`` describes."""
    size = path.stat().st_size
    if size < expected.size_bytes:
        raise UserError(
            f"{path}: is truncated, {size} of the {expected.size_bytes} bytes that {source} tells; "
            "copy or export it again"
        )
    if FileIdentity.of(path).sha256 != expected.sha256:
        raise UserError(
            f"{path}: is not the file that {source} describes (its SHA-256 differs); keep the two "
            "together, or export again"
        )


def check_description(artefact: Path, sidecar: Sidecar, metadata: CheckpointMetadata) -> None:
    """Raises :class:`UserError` where a sidecar tells other than the checkpoint it was made from.

    An artefact may have other rows and columns than its model was trained with, nothing else.
    """
    here = sidecar.preprocessing
    there = replace(metadata.preprocessing, height=here.height, width=here.width)
    told = {
        "model": (sidecar.model, metadata.model.to_json()),
        "task": (sidecar.task, metadata.task),
        "classes": (sidecar.class_names, metadata.class_names),
        "preprocessing": (here, there),
    }
    for name, (told_here, told_there) in told.items():
        if told_here != told_there:
            raise UserError(
                f"{artefact}: its sidecar has another {name} than the checkpoint ({told_here}, not "
                f"{told_there}); export the checkpoint again"
            )


def write_artefacts(artefacts: Sequence[tuple[Path, bytes, Sidecar]]) -> None:
    """Write files with their sidecars: all of them, or none where the disk refuses.

    Raises :class:`UserError`; every path is then as it was before.
    """
    files: list[tuple[Path, bytes]] = []
    for path, content, sidecar in artefacts:
        text = json.dumps(sidecar.to_json(), indent=2, allow_nan=False) + "\n"
        files += [(path, content), (sidecar_path(path), text.encode())]
    _write_together(files)


def _write_together(files: Sequence[tuple[Path, bytes]]) -> None:
    """Fill all temporary files before the first of them is renamed."""
    if not files:
        return
    (path, content), *others = files

    def write_this_and_others(temporary: Path) -> None:
        temporary.write_bytes(content)
        _write_together(others)

    write_atomically(path, write_this_and_others)


def record_verification(artefact: Path, sidecar: Sidecar, verified: dict[str, Any]) -> None:
    """Note a passed verification in the sidecar of ``artefact``."""
    write_json(sidecar_path(artefact), replace(sidecar, verified=verified).to_json())
