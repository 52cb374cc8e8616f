"""Our attention kernels as a TensorRT plugin: compiled ahead of time, no Python at run time.

The graph names the plugins as ONNX nodes in their namespace; while TensorRT builds an engine it
asks the functions registered here for PTX and launch parameters, and embeds both. Argument order is
inputs, 32-bit integers, outputs (``tensorrt.plugin.aot_impl``), which the engine kernels have.

Registering needs the full TensorRT, whose Python module ``tensorrt.plugin`` TensorRT for RTX lacks.
No engine with these plugins has been built yet, for want of that TensorRT and a GPU at one place;
the kernels themselves can be checked on any GPU: ``hmc-fast export kernels --check``.
"""

from collections.abc import Callable, Sequence
from inspect import signature
from types import GenericAlias, ModuleType
from typing import TYPE_CHECKING, Any

import torch

from hmc_fast.errors import UserError
from hmc_fast.export.aot import AttentionCall, grid_per_image, plan_call
from hmc_fast.kernels.problem import AttentionProblem

if TYPE_CHECKING:
    from hmc_fast.kernels.building.aot import KernelBinary
    from hmc_fast.kernels.fused.launch import Launch

NAMESPACE = "hmc_fast"
ATTENTION = "attention"
TWO_SOURCE_ATTENTION = "two_source_attention"
VERSION = "1"
_FIXED_SIDES = ("tokens", "heads", "head dim")
_registered: set[tuple[str, str]] = set()


def default_scale(qk_head_dim: int) -> float:
    """``1/√Dqk``, the only scale of the plugins: it is no attribute, as the shapes tell it."""
    return float(qk_head_dim**-0.5)


def register_plugins(trt: ModuleType, trtp: ModuleType, architecture: str) -> None:
    """Register both plugins with TensorRT, for engines of ``architecture``; again is no harm.

    Args:
        trt: the module ``tensorrt``.
        trtp: the module ``tensorrt.plugin``.
        architecture: of the GPU that the engine is built on, as ``sm_90``.

    Raises:
        UserError: they are registered for another architecture in this process.
    """
    key = (trtp.__name__, architecture)
    if key in _registered:
        return
    if any(module == trtp.__name__ for module, _ in _registered):
        raise UserError("plugins are registered for one architecture in a process; start another")
    _register_attention(trt, trtp, architecture)
    _register_two_source_attention(trt, trtp, architecture)
    _registered.add(key)


def _register_attention(trt: ModuleType, trtp: Any, architecture: str) -> None:
    def describe(q: Any, k: Any, v: Any) -> Any:
        return _output(q, v)

    def implement(q: Any, k: Any, v: Any, outputs: Any, tactic: int) -> Any:
        return _implement(trt, trtp, architecture, q, [k], [v])

    _register(trtp, ATTENTION, describe, implement, outputs=1)


def _register_two_source_attention(trt: ModuleType, trtp: Any, architecture: str) -> None:
    def describe(q: Any, k0: Any, v0: Any, k1: Any, v1: Any) -> Any:
        return _output(q, v0), _output(q, v1)

    def implement(q: Any, k0: Any, v0: Any, k1: Any, v1: Any, outputs: Any, tactic: int) -> Any:
        return _implement(trt, trtp, architecture, q, [k0, k1], [v0, v1])

    _register(trtp, TWO_SOURCE_ATTENTION, describe, implement, outputs=2)


def _register(
    trtp: Any,
    name: str,
    describe: Callable[..., Any],
    implement: Callable[..., Any],
    *,
    outputs: int,
) -> None:
    """Register under ``name``; TensorRT reads the plugin's schema from its own types' annotations.

    They are set here, as those types exist only where TensorRT does.
    """
    tensor = trtp.TensorDesc
    tensors = GenericAlias(tuple, (tensor,) * outputs)
    inputs = list(signature(describe).parameters)
    describe.__annotations__ = dict.fromkeys(inputs, tensor) | {
        "return": tensor if outputs == 1 else tensors
    }
    implement.__annotations__ = dict.fromkeys(inputs, tensor) | {
        "outputs": tensors,
        "tactic": int,
        "return": tuple[str, str, trtp.KernelLaunchParams, trtp.SymIntExprs],
    }
    trtp.register(f"{NAMESPACE}::{name}")(describe)
    trtp.aot_impl(f"{NAMESPACE}::{name}")(implement)


def _output(q: Any, v: Any) -> Any:
    """``[B, M, H, Dv]`` in the dtype of ``q``."""
    out = q.like()
    out.shape_expr[3] = v.shape_expr[3]
    return out


def _implement(
    trt: ModuleType,
    trtp: Any,
    architecture: str,
    q: Any,
    ks: Sequence[Any],
    vs: Sequence[Any],
) -> tuple[str, str, Any, Any]:
    """Entry, PTX, launch parameters and extra integers of one call; only the batch may vary."""
    call = _call_of(trt, q, ks, vs)
    launch, binary = _compile(call, architecture)
    x, y, z = grid_per_image(launch)
    parameters = trtp.KernelLaunchParams()
    parameters.grid_x = q.shape_expr[0] * x
    parameters.grid_y, parameters.grid_z = y, z
    parameters.block_x = binary.threads
    parameters.shared_mem = binary.shared_bytes
    integers = [value for value in launch.arguments.values() if isinstance(value, int)]
    extras = trtp.SymIntExprs(len(integers))
    for index, value in enumerate(integers):
        extras[index] = trtp.SymInt32(value)
    return binary.entry, binary.ptx, parameters, extras


def _compile(call: AttentionCall, architecture: str) -> tuple["Launch", "KernelBinary"]:
    from hmc_fast.kernels.building import aot

    launch = plan_call(call, architecture)
    return launch, aot.binary_for(launch, architecture)


def _call_of(trt: ModuleType, q: Any, ks: Sequence[Any], vs: Sequence[Any]) -> AttentionCall:
    dtypes = {
        trt.DataType.HALF: torch.float16,
        trt.DataType.BF16: torch.bfloat16,
        trt.DataType.FLOAT: torch.float32,
    }
    queries, heads, d_qk = _fixed_sides("q", q)
    tokens = tuple(_fixed_sides(f"k{s}", k)[0] for s, k in enumerate(ks))
    v_head_dims = tuple(_fixed_sides(f"v{s}", v)[2] for s, v in enumerate(vs))
    dtype = dtypes[q.dtype]
    problem = AttentionProblem(1, queries, heads, tokens, v_head_dims, d_qk, dtype, name=ATTENTION)
    return AttentionCall(ATTENTION, problem, default_scale(d_qk))


def _fixed_sides(name: str, tensor: Any) -> list[int]:
    """All sides but the batch, which must be constants of the graph."""
    sides = []
    for label, side in zip(_FIXED_SIDES, list(tensor.shape_expr)[1:], strict=True):
        if not side.is_constant:
            raise ValueError(f"{name} has a dynamic number of {label}; only the batch may vary")
        sides.append(int(side.constant_value()))
    return sides
