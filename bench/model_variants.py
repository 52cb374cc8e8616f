"""Implementations of whole models that are timed against each other."""

from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from hmc_fast.bench.candidates import why_no_compiler
from hmc_fast.bench.model_cases import ModelCase
from hmc_fast.bench.peers_block import (
    PARAMETER_SEED,
    PeerCrossAttention,
    PeerSelfAttention,
    TokenAttend,
    randomise_gates,
    reference_attend,
    token_attend,
)
from hmc_fast.bench.peers_flex import attend_by_flex
from hmc_fast.environment import installed_version
from hmc_fast.kernels.capability import reasons_against
from hmc_fast.kernels.geometry import cross_attention_problem
from hmc_fast.models import HierarchicalSelfAttention, HMCNet, create_model

CALIBRATION_SIZE = 96
CALIBRATION_IMAGES = 4
LEARNING_RATE = 1e-6
ONNX_OPSET = 20


@dataclass(frozen=True)
class Implementation:
    """``build`` makes a callable of a model; ``why_not`` gives the reason why it cannot run."""

    name: str
    about: str
    backend: str
    build: Callable[[HMCNet, Tensor], Callable[[Tensor], Tensor]]
    why_not: Callable[[ModelCase, torch.dtype, torch.device], str | None]
    trainable: bool = True


def reference_model(name: str) -> HMCNet:
    """Random but lifelike parameters: gates open, batch-norm statistics of real activations.

    Fresh batch norms in evaluation mode let activations grow a hundredfold, and closed gates would
    hide the attention from the parity check.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(PARAMETER_SEED)
        model = create_model(name, backend="reference")
        images = torch.randn(CALIBRATION_IMAGES, 3, CALIBRATION_SIZE, CALIBRATION_SIZE)
    randomise_gates(model)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    usual = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None
    with torch.no_grad():
        model.train()(images)
    for norm, momentum in zip(norms, usual, strict=True):
        norm.momentum = momentum
    model.eval()
    return model


def copy_of(model: HMCNet, backend: str) -> HMCNet:
    """The same parameters with another attention backend."""
    copy = create_model(model.config.name, backend=backend)
    copy.load_state_dict(model.state_dict())
    copy.eval()
    return copy


def with_attention(model: HMCNet, attend: TokenAttend) -> HMCNet:
    """``model`` with ``attend`` in place of our operators; plain PyTorch for a compiler."""
    for stage, block in list(model.hsa.items()):
        assert isinstance(block, HierarchicalSelfAttention)
        model.hsa[stage] = PeerSelfAttention(block, attend)
    if model.msca is not None:
        model.add_module("msca", PeerCrossAttention(model.msca, attend))
    return model


def _sdpa(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    return functional.scaled_dot_product_attention(q, k, v, scale=scale)


def _as_it_is(model: HMCNet, images: Tensor) -> Callable[[Tensor], Tensor]:
    return model


def _compiled(
    attend: TokenAttend | None, model: HMCNet, images: Tensor
) -> Callable[[Tensor], Tensor]:
    whole = model if attend is None else with_attention(model, attend)
    return torch.compile(whole, fullgraph=True, dynamic=False)


def _always(case: ModelCase, dtype: torch.dtype, device: torch.device) -> str | None:
    return None


def _needs_compiler(case: ModelCase, dtype: torch.dtype, device: torch.device) -> str | None:
    return why_no_compiler(device)


def _needs_attention(case: ModelCase) -> str | None:
    plain = case.model.startswith("resnet") and "_" not in case.model
    return "the model has no attention" if plain else None


def _compiled_attention(case: ModelCase, dtype: torch.dtype, device: torch.device) -> str | None:
    return _needs_attention(case) or why_no_compiler(device)


def _flex(case: ModelCase, dtype: torch.dtype, device: torch.device) -> str | None:
    if device.type == "cpu" and case.what == "training":
        return "FlexAttention does not support backward on CPU"
    return _compiled_attention(case, dtype, device)


def _triton(case: ModelCase, dtype: torch.dtype, device: torch.device) -> str | None:
    if plain := _needs_attention(case):
        return plain
    if device.type != "cuda":
        return "the fused kernels need an NVIDIA GPU; Triton's interpreter is for tests of results"
    problem = replace(cross_attention_problem(224, 1), dtype=dtype, device=device)
    return "; ".join(reasons_against(problem, "triton")) or None


def _onnxruntime(case: ModelCase, dtype: torch.dtype, device: torch.device) -> str | None:
    if case.what == "training":
        return "ONNX Runtime infers only"
    for package in ("onnxruntime", "onnxscript"):
        if installed_version(package) is None and installed_version(f"{package}-gpu") is None:
            return f"{package} is not installed: pip install 'hmc-fast[export]'"
    if dtype == torch.bfloat16 or (dtype == torch.float16 and device.type == "cpu"):
        return f"ONNX Runtime is timed in fp32, and in fp16 on a GPU, not in {dtype}"
    import onnxruntime

    if (
        device.type == "cuda"
        and "CUDAExecutionProvider" not in onnxruntime.get_available_providers()
    ):
        return "this onnxruntime has no CUDAExecutionProvider: pip install onnxruntime-gpu"
    return None


def _onnx_session(model: HMCNet, images: Tensor) -> Callable[[Tensor], Tensor]:
    plain = with_attention(model, reference_attend)
    with TemporaryDirectory() as folder:
        path = Path(folder) / "model.onnx"
        torch.onnx.export(
            plain, (images,), path, dynamo=True, opset_version=ONNX_OPSET, verbose=False
        )
        return _session(path, images)


def _session(path: Path, images: Tensor) -> Callable[[Tensor], Tensor]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = torch.get_num_threads()
    # Its idle threads would spin on the cores that the implementations beside it are timed on.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    provider = "CUDAExecutionProvider" if images.is_cuda else "CPUExecutionProvider"
    session = onnxruntime.InferenceSession(path, options, providers=[provider])
    return partial(_run_on_gpu if images.is_cuda else _run_on_cpu, session)


def _run_on_cpu(session: Any, images: Tensor) -> Tensor:
    (logits,) = session.run(None, {session.get_inputs()[0].name: images.numpy()})
    return torch.from_numpy(logits)


def _run_on_gpu(session: Any, images: Tensor) -> Tensor:
    import numpy as np

    element = {torch.float32: np.float32, torch.float16: np.float16}[images.dtype]
    binding = session.io_binding()
    contiguous = images.contiguous()
    binding.bind_input(
        session.get_inputs()[0].name,
        "cuda",
        images.device.index or 0,
        element,
        tuple(images.shape),
        contiguous.data_ptr(),
    )
    binding.bind_output(session.get_outputs()[0].name, "cuda", images.device.index or 0)
    # ONNX Runtime has a stream of its own, so PyTorch's work on the images must be done before.
    torch.cuda.current_stream(images.device).synchronize()
    session.run_with_iobinding(binding)
    return torch.from_numpy(binding.copy_outputs_to_cpu()[0]).to(images.device)


IMPLEMENTATIONS: tuple[Implementation, ...] = (
    Implementation("triton", "fused kernels, eager around them", "triton", _as_it_is, _triton),
    Implementation(
        "triton_compiled",
        "fused kernels, the rest compiled",
        "triton",
        partial(_compiled, None),
        _triton,
    ),
    Implementation("eager", "reference attention", "reference", _as_it_is, _always),
    Implementation(
        "compiled",
        "torch.compile through the reference",
        "reference",
        partial(_compiled, reference_attend),
        _needs_compiler,
    ),
    Implementation(
        "compiled_sdpa",
        "torch.compile around SDPA, by the kernel PyTorch picks",
        "reference",
        partial(_compiled, token_attend(_sdpa, equal_head_dims=True)),
        _compiled_attention,
    ),
    Implementation(
        "compiled_flex",
        "torch.compile with FlexAttention",
        "reference",
        partial(_compiled, token_attend(attend_by_flex, equal_head_dims=False)),
        _flex,
    ),
    Implementation(
        "onnxruntime", "ONNX, opset 20", "reference", _onnx_session, _onnxruntime, trainable=False
    ),
)
IMPLEMENTATION_NAMES = tuple(implementation.name for implementation in IMPLEMENTATIONS)
OURS = ("triton", "triton_compiled")


class TrainingStep:
    """Forward, cross-entropy, backward and AdamW, in mixed precision around fp32 parameters."""

    def __init__(self, model: HMCNet, call: Callable[[Tensor], Tensor], dtype: torch.dtype) -> None:
        self.model = model
        self.call = call
        self.dtype = dtype
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE)

    def gradients(self, images: Tensor, labels: Tensor) -> Tensor:
        """Loss backward; returns the loss. Gradients lie in the parameters."""
        self.optimizer.zero_grad(set_to_none=True)
        low = self.dtype in (torch.bfloat16, torch.float16)
        with torch.autocast(images.device.type, self.dtype) if low else nullcontext():
            loss = functional.cross_entropy(
                self.call(images).float() if low else self.call(images), labels
            )
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def __call__(self, batch: Sequence[Tensor]) -> None:
        """One step on ``(images, labels)``."""
        self.gradients(*batch)
        self.optimizer.step()

    def own_bytes(self) -> int:
        """Bytes of parameters, buffers and the optimiser's state."""
        state = [
            value
            for values in self.optimizer.state.values()
            for value in values.values()
            if isinstance(value, Tensor)
        ]
        return _bytes([*self.model.parameters(), *self.model.buffers(), *state])


def model_bytes(model: nn.Module) -> int:
    """Bytes of parameters and buffers."""
    return _bytes([*model.parameters(), *model.buffers()])


def _bytes(tensors: Sequence[Tensor]) -> int:
    return sum(t.numel() * t.element_size() for t in tensors)
