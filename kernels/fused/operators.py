"""The fused kernels behind the contract of :mod:`hmc_fast.kernels.reference`."""

from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import cache

import torch
from torch import Tensor

from hmc_fast.kernels.fused.architectures import plan_for
from hmc_fast.kernels.fused.launch import Launch, Target
from hmc_fast.kernels.fused.tiles import tiles_for

INTERPRETER_MULTIPROCESSORS = 8
"""What the interpreter pretends to have, so that small grids are split there as on a GPU."""
MAX_TOKEN_STRIDE = 2**23
"""Offsets inside a tile are 32-bit: a view with tokens farther apart is copied first."""


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """As :func:`hmc_fast.kernels.reference.attention`."""
    lse = q.new_empty(q.shape[0], q.shape[2], q.shape[1], dtype=torch.float32)
    unwritten = lse.new_empty(1)  # the weights of one source
    outs = _attend(q, [k], [v], scale, lse, unwritten)
    return outs[0], lse


def multi_scale_attention(
    q: Tensor, ks: Sequence[Tensor], vs: Sequence[Tensor], scale: float
) -> tuple[list[Tensor], Tensor, Tensor]:
    """As :func:`hmc_fast.kernels.reference.multi_scale_attention`."""
    batch, queries, heads, _ = q.shape
    lse = q.new_empty(batch, heads, queries, dtype=torch.float32)
    if len(vs) == 1:
        weights = lse.new_ones(batch, heads, queries, 1)
    else:
        weights = lse.new_empty(batch, heads, queries, len(vs))
    return _attend(q, ks, vs, scale, lse, weights), lse, weights


def _attend(
    q: Tensor,
    ks: Sequence[Tensor],
    vs: Sequence[Tensor],
    scale: float,
    lse: Tensor,
    weights: Tensor,
) -> list[Tensor]:
    """The outs; ``lse`` and, for several sources, ``weights`` are filled."""
    q, ks, vs = _addressable(q), [_addressable(k) for k in ks], [_addressable(v) for v in vs]
    outs = [q.new_empty(*q.shape[:3], v.shape[3]) for v in vs]
    target = target_of(q)
    plan = plan_for("attention_forward", target.architecture)
    run(q, plan(target, q, ks, vs, scale, outs, lse, weights))
    return outs


def attention_backward(
    d_out: Tensor,
    d_lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """As :func:`hmc_fast.kernels.reference.attention_backward`."""
    dq, dks, dvs = multi_scale_attention_backward(
        [d_out], d_lse, d_lse, q, [k], [v], [out], lse, lse, scale
    )
    return dq, dks[0], dvs[0]


def multi_scale_attention_backward(
    d_outs: Sequence[Tensor],
    d_lse: Tensor,
    d_weights: Tensor,
    q: Tensor,
    ks: Sequence[Tensor],
    vs: Sequence[Tensor],
    outs: Sequence[Tensor],
    lse: Tensor,
    weights: Tensor,
    scale: float,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """As :func:`hmc_fast.kernels.reference.multi_scale_attention_backward`.

    With one source, ``weights`` and ``d_weights`` are not read: the weight is constant.
    """
    q, ks, vs = _addressable(q), [_addressable(k) for k in ks], [_addressable(v) for v in vs]
    dq = torch.empty_like(q, memory_format=torch.contiguous_format)
    dks = [torch.empty_like(k, memory_format=torch.contiguous_format) for k in ks]
    dvs = [torch.empty_like(v, memory_format=torch.contiguous_format) for v in vs]
    d_outs = [_addressable(d_out) for d_out in d_outs]
    d_lse, d_weights = d_lse.contiguous(), d_weights.contiguous()
    target = target_of(q)
    plan = plan_for("attention_backward", target.architecture)
    cotangents, results = (d_outs, d_lse, d_weights), (outs, lse, weights)
    run(q, plan(target, *cotangents, q, ks, vs, *results, scale, dq, dks, dvs))
    return dq, dks, dvs


def gated_projection(
    x: Tensor, attended: Sequence[Tensor], weight: Tensor, bias: Tensor, gamma: Tensor
) -> Tensor:
    """As :func:`hmc_fast.kernels.reference.gated_projection`."""
    y = torch.empty_like(x, memory_format=torch.contiguous_format)
    contiguous = [a.contiguous() for a in attended]
    target = target_of(weight)
    plan = plan_for("gated_projection", target.architecture)
    run(x, plan(target, x.contiguous(), contiguous, weight.contiguous(), bias, gamma, y))
    return y


def target_of(x: Tensor) -> Target:
    """The device, its tiles, and the precision of products of the dtype of ``x``."""
    if x.device.type != "cuda":
        return Target(tiles_for(x.device), INTERPRETER_MULTIPROCESSORS, "ieee")
    return Target(tiles_for(x.device), _multiprocessors(x.device), input_precision(x.dtype))


def input_precision(dtype: torch.dtype) -> str:
    """``"tf32"`` for fp32 products where PyTorch allows it on GPUs, by any of its switches."""
    # allow_tf32 cannot be read once the newer fp32_precision has been set; this sees both.
    allowed = dtype == torch.float32 and torch.backends.cuda.matmul.fp32_precision == "tf32"
    return "tf32" if allowed else "ieee"


@cache
def _multiprocessors(device: torch.device) -> int:
    return int(torch.cuda.get_device_properties(device).multi_processor_count)


def _addressable(x: Tensor) -> Tensor:
    """``x``, copied only where a kernel could not walk it: a broadcast or far-flung view."""
    walkable = x.stride(3) == 1 and x.stride(1) < MAX_TOKEN_STRIDE
    return x if walkable else x.contiguous()


def run(x: Tensor, launches: Iterable[Launch]) -> None:
    """Run ``launches`` on the device of ``x``."""
    device: AbstractContextManager[object] = (
        torch.cuda.device(x.device) if x.device.type == "cuda" else nullcontext()
    )
    with device:
        for launch in launches:
            launch.run()
