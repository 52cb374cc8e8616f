"""A model repository for NVIDIA Triton Inference Server: an artefact, and a film model before it.

``config.pbtxt`` is made from the server's own protobuf schema, which tritonclient ships, so that a
field the server does not know cannot be written.
"""

import shutil
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hmc_fast.checkpoint import load_model
from hmc_fast.errors import UserError
from hmc_fast.export.packages import need
from hmc_fast.export.runtime import check_attention
from hmc_fast.export.sidecar import (
    INPUT_NAME,
    OUTPUT_NAME,
    PLAIN_NAME,
    Sidecar,
    check_description,
    check_file,
    read_sidecar,
    sidecar_path,
)
from hmc_fast.files import make_folder, write_folder
from hmc_fast.serving.service import (
    FILM_INPUT,
    FILM_MODEL,
    FILM_OUTPUT,
    PARAMETER,
    FilmService,
)

LABELS_FILE = "labels.txt"
CONFIG_FILE = "config.pbtxt"
FILM_VERSION = "1"
FILM_PROGRAM = "from hmc_fast.serving.film_model import TritonPythonModel  # noqa: F401\n"
"""What Triton's Python backend loads; its Python needs hmc-fast."""
_DATA_TYPES = {"float32": "TYPE_FP32", "float16": "TYPE_FP16", "bfloat16": "TYPE_BF16"}


@dataclass(frozen=True)
class ServingOptions:
    """How the server runs the model.

    Args:
        name: of the model; by default that of the artefact's model.
        version: a whole number from 1 on.
        instances: copies of the model on each device.
        device: ``gpu`` or ``cpu``; an engine needs ``gpu``.
        max_queue_delay_us: how long a request may wait for others to share its batch, in µs.
        film_model: name of the model that takes films.
        readers: processes that read films for it.
        allow_raw: also take DICOM images that are for processing.
    """

    name: str | None = None
    version: int = 1
    instances: int = 1
    device: str = "gpu"
    max_queue_delay_us: int = 2000
    film_model: str = FILM_MODEL
    readers: int = 1
    allow_raw: bool = False

    def __post_init__(self) -> None:
        if self.device not in ("gpu", "cpu"):
            raise UserError(f"--device {self.device}: choose gpu or cpu")
        if min(self.version, self.instances, self.readers) < 1 or self.max_queue_delay_us < 0:
            raise UserError(
                "--version, --instances and --readers start at 1, --max-queue-delay at 0"
            )
        for option, name in (("--name", self.name), ("--film-model", self.film_model)):
            if name is not None and not PLAIN_NAME.fullmatch(name):
                raise UserError(
                    f"{option} {name!r}: names a folder; use letters, digits, _, - and ."
                )


def write_model_repository(artefact: Path, out: Path, options: ServingOptions) -> Path:
    """Write ``out/NAME`` for an ONNX file or an engine of the full TensorRT; returns that folder.

    Beside it comes the film model, which takes films' files and asks the other for their logits;
    the server's Python backend runs it, with hmc-fast in its Python.

    The folder holds ``config.pbtxt`` (dynamic batching, warm-up at the smallest and largest batch,
    instance groups), the class names, the artefact as ``model.onnx`` or ``model.plan`` in a folder
    per version, and its sidecar, which has to agree with the checkpoint where that is still there.

    Raises:
        UserError: the artefact cannot be served, a folder exists or cannot be written, or
            tritonclient is missing.
    """
    sidecar = read_sidecar(artefact)
    checkpoint = artefact.parent / sidecar.checkpoint.name
    if checkpoint.is_file():
        check_file(checkpoint, sidecar.checkpoint, f"the sidecar of {artefact.name}")
        check_description(artefact, sidecar, load_model(checkpoint).metadata)
    _check_servable(artefact, sidecar, options)
    name = served_name(artefact, options)
    if name == options.film_model:
        raise UserError(f"{name}: is the name of both models; give another --name or --film-model")
    folder, film_folder = make_folder(out) / name, out / options.film_model
    config = model_config(sidecar, name, options)
    film_config = film_model_config(sidecar, name, options)
    # A kill between the two folders has left the first.
    half = not folder.exists() and _is_film_model(film_folder, film_config)
    for path, option in ((folder, "--name"), (film_folder, "--film-model")):
        if path.exists() and not half:
            raise UserError(f"{path}: exists already; remove it, or choose another {option}")

    def fill_film(new: Path) -> None:
        program = new / FILM_VERSION / "model.py"
        program.parent.mkdir()
        program.write_text(FILM_PROGRAM, encoding="utf-8")
        _write_texts(new, sidecar, film_config)

    def fill(new: Path) -> None:
        versioned = new / str(options.version)
        versioned.mkdir()
        served = versioned / ("model.onnx" if sidecar.kind == "onnx" else "model.plan")
        shutil.copyfile(artefact, served)
        shutil.copyfile(sidecar_path(artefact), sidecar_path(served))
        _write_texts(new, sidecar, config)
        if not half:
            write_folder(film_folder, fill_film)

    write_folder(folder, fill)
    return folder


def served_name(artefact: Path, options: ServingOptions) -> str:
    """The name of the artefact's model in a repository, and of its folder there."""
    return options.name or str(read_sidecar(artefact).model["name"])


def _is_film_model(folder: Path, config: str) -> bool:
    """Whether ``folder`` holds the film model of ``config``, whole as all that is written is."""
    try:
        return (folder / CONFIG_FILE).read_text(encoding="utf-8") == config
    except (OSError, UnicodeDecodeError):
        return False


def model_config(sidecar: Sidecar, name: str, options: ServingOptions) -> str:
    """``config.pbtxt`` of an artefact, in the server's schema.

    Raises :class:`UserError` where tritonclient is missing.
    """
    schema, text_format = need(
        "tritonclient.grpc.model_config_pb2", "google.protobuf.text_format", extra="serving"
    )
    profile = sidecar.profile
    config = schema.ModelConfig(
        name=name,
        platform="onnxruntime_onnx" if sidecar.kind == "onnx" else "tensorrt_plan",
        max_batch_size=profile.maximum,
        input=[{"name": INPUT_NAME, **_tensor(sidecar, INPUT_NAME)}],
        output=[
            {
                "name": OUTPUT_NAME,
                **_tensor(sidecar, OUTPUT_NAME),
                "label_filename": LABELS_FILE,
            }
        ],
        instance_group=[{"count": options.instances, "kind": f"KIND_{options.device.upper()}"}],
        dynamic_batching={
            "preferred_batch_size": [profile.optimum],
            "max_queue_delay_microseconds": options.max_queue_delay_us,
        },
        model_warmup=[
            _warm_up(sidecar, batch) for batch in _distinct((profile.minimum, profile.maximum))
        ],
    )
    return str(text_format.MessageToString(config))


def film_model_config(sidecar: Sidecar, name: str, options: ServingOptions) -> str:
    """``config.pbtxt`` of the film model before the model ``name``, in the server's schema.

    Films differ in size, so that a batch is ragged: films of several requests that the model gets
    at once. Raises :class:`UserError` where tritonclient is missing.
    """
    schema, text_format = need(
        "tritonclient.grpc.model_config_pb2", "google.protobuf.text_format", extra="serving"
    )
    service = FilmService(
        model=name,
        version=options.version,
        images=INPUT_NAME,
        logits=OUTPUT_NAME,
        smallest_batch=sidecar.profile.minimum,
        task=sidecar.task,
        class_names=sidecar.class_names,
        preprocessing=sidecar.preprocessing,
        allow_raw=options.allow_raw,
    )
    config = schema.ModelConfig(
        name=options.film_model,
        backend="python",
        # Not the largest, since the images of a whole batch are held at once.
        max_batch_size=sidecar.profile.optimum,
        input=[
            {
                "name": FILM_INPUT,
                "data_type": "TYPE_UINT8",
                "dims": [-1],
                "allow_ragged_batch": True,
            }
        ],
        output=[
            {
                "name": FILM_OUTPUT,
                "data_type": "TYPE_FP32",
                "dims": [len(sidecar.class_names)],
                "label_filename": LABELS_FILE,
            }
        ],
        instance_group=[{"count": options.readers, "kind": "KIND_CPU"}],
        dynamic_batching={"max_queue_delay_microseconds": options.max_queue_delay_us},
        parameters={PARAMETER: {"string_value": service.to_parameter()}},
    )
    return str(text_format.MessageToString(config))


def _write_texts(folder: Path, sidecar: Sidecar, config: str) -> None:
    """The configuration and the class names, which the server adds to classifications."""
    labels = "\n".join(sidecar.class_names) + "\n"
    (folder / LABELS_FILE).write_text(labels, encoding="utf-8")
    (folder / CONFIG_FILE).write_text(config, encoding="utf-8")


def _check_servable(artefact: Path, sidecar: Sidecar, options: ServingOptions) -> None:
    if sidecar.engine is not None and sidecar.engine.flavour != "tensorrt":
        raise UserError(
            f"{artefact}: Triton's TensorRT backend runs engines of the full TensorRT, this one is "
            f"of {sidecar.engine.flavour}; serve {sidecar.engine.onnx.name} instead, or build with "
            "--flavour tensorrt"
        )
    if sidecar.kind == "engine" and options.device == "cpu":
        raise UserError(f"{artefact}: an engine runs on a GPU; leave out --device cpu")
    if sidecar.kind == "onnx":
        check_attention(artefact, sidecar, "onnxruntime")
    if sidecar.kind == "onnx" and sidecar.precision == "bf16":
        raise UserError(
            f"{artefact}: ONNX Runtime has no bf16 convolution; serve fp16 or fp32, or an engine"
        )


def _tensor(sidecar: Sidecar, name: str) -> dict[str, Any]:
    """Without the batch dimension, which the server adds."""
    tensor = sidecar.tensors[name]
    return {"data_type": _DATA_TYPES[tensor["dtype"]], "dims": tensor["shape"][1:]}


def _warm_up(sidecar: Sidecar, batch: int) -> dict[str, Any]:
    tensor = {**_tensor(sidecar, INPUT_NAME), "random_data": True}
    return {"name": f"batch {batch}", "batch_size": batch, "inputs": {INPUT_NAME: tensor}}


def _distinct(values: Iterable[int]) -> list[int]:
    return list(dict.fromkeys(values))
