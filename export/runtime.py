"""Artefacts as callables with the torch model's interface."""

from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from hmc_fast.data import Preprocessing
from hmc_fast.environment import installed_version
from hmc_fast.errors import UserError
from hmc_fast.export.attention import form_for
from hmc_fast.export.builders import FLAVOURS, describe_tensor, gpu_architecture
from hmc_fast.export.packages import CannotRunHereError, need
from hmc_fast.export.sidecar import (
    INPUT_NAME,
    OUTPUT_NAME,
    Sidecar,
    read_sidecar,
    rebuild_command,
)


class _Session(Protocol):
    """Runs one batch whose size is within the profile."""

    def run(self, images: Tensor) -> Tensor: ...


class Runner:
    """A loaded artefact, called like the model: images ``[B, 3, H, W]`` to logits ``[B, classes]``.

    Any batch size is taken: larger batches than the profile's are split, smaller ones filled up.

    Attributes:
        sidecar: what is known of the artefact.
        device: where the logits are.
    """

    def __init__(self, session: _Session, sidecar: Sidecar, device: torch.device) -> None:
        self.sidecar = sidecar
        self.device = device
        self._session = session

    def __call__(self, images: Tensor) -> Tensor:
        """Logits in fp32.

        Raises ``ValueError`` for images of another shape than the artefact's.
        """
        expected = self.sidecar.tensors[INPUT_NAME]["shape"][1:]
        if images.dim() != 4 or list(images.shape[1:]) != expected or not len(images):
            raise ValueError(
                f"images have shape {list(images.shape)}; this artefact takes [B, "
                f"{', '.join(map(str, expected))}] with B >= 1"
            )
        on_device = images.detach().to(self.device, torch.float32)
        parts = torch.split(on_device, self.sidecar.profile.maximum)
        return torch.cat([self._run_filled(part) for part in parts])

    def _run_filled(self, images: Tensor) -> Tensor:
        missing = max(0, self.sidecar.profile.minimum - len(images))
        filled = pad(images, (0, 0, 0, 0, 0, 0, 0, missing)).contiguous()
        return self._session.run(filled)[: len(images)]


def load(
    artefact: str | Path,
    *,
    device: str | torch.device | None = None,
    runtime: str | None = None,
    precision: str | None = None,
    preprocessing: Preprocessing | None = None,
) -> Runner:
    """Load an ONNX file (ONNX Runtime, OpenVINO) or an engine (TensorRT), its sidecar first.

    Args:
        artefact: written by ``hmc-fast export``.
        device: by default ``cpu`` for ONNX and ``cuda`` for an engine.
        runtime: ``onnxruntime``, the default, or ``openvino`` for an ONNX file; None for an engine.
        precision: refuse an artefact of any other: ``fp32``, ``fp16``, ``bf16``, ``int8``, ``fp8``.
        preprocessing: refuse an artefact that expects any other.

    Raises:
        UserError: the file or its sidecar is missing, damaged or belongs elsewhere; the version,
            the GPU, the precision or the preprocessing does not fit, with the command that rebuilds
            it; or what runs it is not installed. :class:`CannotRunHereError`, a kind of it, where
            another machine or installation could run the artefact.
    """
    path = Path(artefact)
    sidecar = read_sidecar(path)
    _check_wishes(path, sidecar, precision, preprocessing)
    if sidecar.kind == "onnx":
        chosen = runtime or DEFAULT_RUNTIME
        target = torch.device(device or "cpu")
        check_attention(path, sidecar, chosen)
        return Runner(SESSIONS[chosen](path, sidecar, target), sidecar, target)
    _check_engine_fits(path, sidecar, runtime)
    target = torch.device(device or "cuda")
    return Runner(_EngineSession(path, sidecar, target), sidecar, target)


def check_attention(path: Path, sidecar: Sidecar, runtime: str) -> None:
    """Refuse a graph whose attention another runtime would run, slowly and in gigabytes."""
    form = form_for(runtime).name
    if runtime not in SESSIONS:
        raise UserError(
            f"{path}: is a graph, {runtime} runs an engine: hmc-fast export tensorrt CHECKPOINT; "
            f"graphs are run by {', '.join(SESSIONS)}"
        )
    if sidecar.attention not in (None, form):
        raise UserError(
            f"{path}: its attention is written for another runtime ({sidecar.attention}), which "
            f"{runtime} would run in gigabytes; export it again with --runtime {runtime}"
        )


def _check_wishes(
    path: Path, sidecar: Sidecar, precision: str | None, preprocessing: Preprocessing | None
) -> None:
    if precision is not None and precision != sidecar.numerics:
        raise UserError(
            f"{path}: computes in {sidecar.numerics}, but {precision} was asked for; rebuild it as "
            f"{rebuild_command(sidecar)}, with that precision"
        )
    if preprocessing is not None and preprocessing != sidecar.preprocessing:
        raise UserError(
            f"{path}: expects {_describe(sidecar.preprocessing)}, but the films are prepared as "
            f"{_describe(preprocessing)}; rebuild it from a checkpoint trained on such films, or "
            f"with --size {preprocessing.height} where only the size differs"
        )


def _describe(preprocessing: Preprocessing) -> str:
    return (
        f"{preprocessing.height}x{preprocessing.width}, mean {preprocessing.mean}, "
        f"std {preprocessing.std}"
    )


def _check_engine_fits(path: Path, sidecar: Sidecar, runtime: str | None) -> None:
    """By the sidecar alone: engine bytes of another release are not for parsing."""
    engine = sidecar.engine
    if engine is None or engine.flavour not in FLAVOURS:
        raise UserError(f"{path}: its sidecar names no builder known here; export it again")
    if runtime is not None:
        raise UserError(
            f"{path}: is an engine of {engine.flavour}, which {runtime} does not run; load "
            f"{engine.onnx.name} with it instead"
        )
    (trt,) = need(FLAVOURS[engine.flavour].module, extra=engine.flavour)
    if trt.__version__ != engine.version and not engine.version_compatible:
        raise CannotRunHereError(
            f"{path}: was built by {engine.flavour} {engine.version}, installed is "
            f"{trt.__version__}; rebuild it: {rebuild_command(sidecar)}"
        )
    if not torch.cuda.is_available():
        raise CannotRunHereError(
            f"{path}: an engine needs an NVIDIA GPU and its driver, and torch sees none; load "
            f"{engine.onnx.name} instead, which ONNX Runtime runs"
        )
    here = gpu_architecture()
    if here not in engine.targets and not engine.hardware_compatible:
        raise CannotRunHereError(
            f"{path}: was built for {', '.join(engine.targets)}, this GPU is {here}; rebuild it: "
            f"{rebuild_command(sidecar, target=here)}"
        )


def _check_graph(path: Path, sidecar: Sidecar, sides: dict[str, list[Any]]) -> None:
    """The graph has the names and shapes of its sidecar; ``sides`` are those after the batch."""
    expected = {name: tensor["shape"][1:] for name, tensor in sidecar.tensors.items()}
    if sides != expected:
        raise UserError(
            f"{path}: holds {sides}, its sidecar says {expected}; rebuild it: "
            f"{rebuild_command(sidecar)}"
        )


class _OnnxSession:
    """ONNX Runtime on one device, without a silent fallback to another."""

    def __init__(self, path: Path, sidecar: Sidecar, device: torch.device) -> None:
        (onnxruntime,) = need("onnxruntime", extra="export")
        provider = "CUDAExecutionProvider" if device.type == "cuda" else "CPUExecutionProvider"
        if provider not in onnxruntime.get_available_providers():
            raise CannotRunHereError(
                f"onnxruntime {installed_version('onnxruntime')} has no {provider}; install "
                "onnxruntime-gpu in its place, or use device cpu"
            )
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = torch.get_num_threads()
        # From the second call on it would hold a block for all of a call beside the arena's own.
        options.enable_mem_pattern = False
        if sidecar.numerics == "fp8":
            # Its optimiser moves fp8 through nodes for which it has no fp8 kernel.
            options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
        try:
            self._session: Any = onnxruntime.InferenceSession(path, options, providers=[provider])
        except Exception as error:  # onnxruntime's errors share no base class of their own
            raise CannotRunHereError(
                f"{path}: ONNX Runtime cannot run it here ({' '.join(str(error).split())})"
            ) from None
        values = (*self._session.get_inputs(), *self._session.get_outputs())
        _check_graph(path, sidecar, {value.name: value.shape[1:] for value in values})
        self._device = device

    def run(self, images: Tensor) -> Tensor:
        (logits,) = self._session.run([OUTPUT_NAME], {INPUT_NAME: images.cpu().numpy()})
        return torch.from_numpy(np.asarray(logits)).to(self._device)


class _OpenVinoSession:
    """OpenVINO on the CPU, computing in fp32 what is not quantised.

    It reuses memory in graphs of a fixed batch alone, so that the graph is compiled for the batch
    that comes, and anew for another.
    """

    def __init__(self, path: Path, sidecar: Sidecar, device: torch.device) -> None:
        (openvino,) = need("openvino", extra="openvino")
        if device.type != "cpu":
            raise CannotRunHereError(f"{path}: openvino runs it on the CPU; use device cpu")
        self._path = path
        self._sidecar = sidecar
        self._core: Any = openvino.Core()
        self._image = sidecar.tensors[INPUT_NAME]["shape"][1:]
        self._batch = 0
        self._compile(1)

    def _compile(self, batch: int) -> None:
        hints = {
            "INFERENCE_PRECISION_HINT": "f32",
            "INFERENCE_NUM_THREADS": torch.get_num_threads(),
        }
        try:
            model = self._core.read_model(self._path)
            values = (*model.inputs, *model.outputs)
            sides = {value.any_name: _sides(value.partial_shape)[1:] for value in values}
            _check_graph(self._path, self._sidecar, sides)
            model.reshape([batch, *self._image])
            self._graph: Any = self._core.compile_model(model, "CPU", hints)
        except UserError:
            raise
        except Exception as error:  # openvino's errors are plain RuntimeErrors of many lines
            raise CannotRunHereError(
                f"{self._path}: OpenVINO cannot run it here ({' '.join(str(error).split())[:300]})"
            ) from None
        self._batch = batch

    def run(self, images: Tensor) -> Tensor:
        if len(images) != self._batch:
            self._compile(len(images))
        (logits,) = self._graph([images.numpy()]).values()
        return torch.from_numpy(np.array(logits))


def _sides(shape: Any) -> list[Any]:
    """Numbers, and text for sides that are not fixed."""
    return [side.get_length() if side.is_static else str(side) for side in shape]


SESSIONS: dict[str, type[_OnnxSession] | type[_OpenVinoSession]] = {
    "onnxruntime": _OnnxSession,
    "openvino": _OpenVinoSession,
}
"""What runs an ONNX file, by name."""
DEFAULT_RUNTIME = "onnxruntime"


class EngineCall:
    """A TensorRT engine on torch's current stream; torch owns all buffers it is called with.

    Args:
        trt: the builder's module.
        content: of an engine that it built.
        device: a GPU.

    Raises :class:`UserError` where this GPU refuses the engine or has no memory for it.
    """

    def __init__(self, trt: Any, content: bytes, device: torch.device) -> None:
        self._runtime = trt.Runtime(trt.Logger(trt.Logger.ERROR))
        with torch.cuda.device(device):
            self.engine: Any = self._runtime.deserialize_cuda_engine(content)
            if self.engine is None:
                raise UserError("TensorRT refuses the engine on this GPU")
            self._context = self.engine.create_execution_context()
        if self._context is None:
            raise UserError("TensorRT has no memory on this GPU for the engine's activations")
        self._device = device
        output = describe_tensor(
            self.engine.get_tensor_dtype(OUTPUT_NAME), self.engine.get_tensor_shape(OUTPUT_NAME)
        )
        self._classes: int = output["shape"][1]
        self._dtype: torch.dtype = getattr(torch, output["dtype"])

    def __call__(self, images: Tensor) -> Tensor:
        """Contiguous images ``[B, 3, H, W]`` of the engine's dtype to logits ``[B, classes]``.

        Raises ``RuntimeError`` where TensorRT refuses the call; it would run on with what the call
        before left.
        """
        shape = tuple(images.shape)
        logits = torch.empty(len(images), self._classes, dtype=self._dtype, device=self._device)
        if not self._context.set_input_shape(INPUT_NAME, shape):
            raise RuntimeError(f"the engine refuses images of shape {shape}")
        for name, tensor in ((INPUT_NAME, images), (OUTPUT_NAME, logits)):
            if not self._context.set_tensor_address(name, tensor.data_ptr()):
                raise RuntimeError(f"the engine refuses the address of its {name}")
        stream = torch.cuda.current_stream(self._device).cuda_stream
        if not self._context.execute_async_v3(stream):
            raise RuntimeError("the engine did not run; see TensorRT's message above")
        return logits


class _EngineSession:
    """An engine that was checked against its sidecar."""

    def __init__(self, path: Path, sidecar: Sidecar, device: torch.device) -> None:
        assert sidecar.engine is not None
        (trt,) = need(FLAVOURS[sidecar.engine.flavour].module, extra=sidecar.engine.flavour)
        try:
            self._call = EngineCall(trt, path.read_bytes(), device)
        except UserError as error:
            raise UserError(
                f"{path}: {error}; rebuild it: "
                f"{rebuild_command(sidecar, target=gpu_architecture())}"
            ) from None
        _check_engine(path, self._call.engine, sidecar)

    def run(self, images: Tensor) -> Tensor:
        return self._call(images)


def _check_engine(path: Path, engine: Any, sidecar: Sidecar) -> None:
    """The deserialised engine has the names, shapes, types and profile of its sidecar."""
    names = [engine.get_tensor_name(i) for i in range(engine.num_io_tensors)]
    tensors = {
        name: describe_tensor(engine.get_tensor_dtype(name), engine.get_tensor_shape(name))
        for name in names
    }
    batches = [shape[0] for shape in engine.get_tensor_profile_shape(INPUT_NAME, 0)]
    profile = sidecar.profile
    expected = [profile.minimum, profile.optimum, profile.maximum]
    if tensors != sidecar.tensors or batches != expected:
        raise UserError(
            f"{path}: holds {tensors} for batches {batches}, its sidecar says {sidecar.tensors} "
            f"for {expected}; rebuild it: {rebuild_command(sidecar)}"
        )
