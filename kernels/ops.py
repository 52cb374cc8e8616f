"""The operators as PyTorch custom ops: registered once, with fakes, autograd and FLOP counts.

``torch.compile(fullgraph=True)`` and ``torch.export`` see one opaque node each;
:func:`decompositions` turns that node into plain ATen for exporters that need it. The
implementation behind a node is named by its ``backend`` argument, which is never ``"auto"`` here.
"""

from collections.abc import Callable, Sequence
from importlib import import_module
from math import prod
from types import ModuleType
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from hmc_fast.kernels import reference

_MODULES = {
    "reference": "hmc_fast.kernels.reference",
    "cpu": "hmc_fast.kernels.cpu.operators",
    "triton": "hmc_fast.kernels.fused.operators",
}


def _implementation(backend: str) -> ModuleType:
    """The reference imports no Triton, so an implementation is imported when first called."""
    return import_module(_MODULES[backend])


def _no_autocast(q: Tensor) -> torch.autocast:
    """Autocast stays out of the implementations, which choose their own precision."""
    return torch.autocast(q.device.type, dtype=torch.bfloat16, enabled=False)


@torch.library.custom_op("hmc_fast::attention_forward", mutates_args=())
def attention_forward(
    q: Tensor, k: Tensor, v: Tensor, scale: float, backend: str
) -> tuple[Tensor, Tensor]:
    with _no_autocast(q):
        return _implementation(backend).attention(q, k, v, scale)  # type: ignore[no-any-return]


@attention_forward.register_fake
def _(q: Tensor, k: Tensor, v: Tensor, scale: float, backend: str) -> tuple[Tensor, Tensor]:
    batch, queries, heads, _ = q.shape
    return q.new_empty(batch, queries, heads, v.shape[3]), _empty_lse(q)


@torch.library.custom_op("hmc_fast::attention_backward", mutates_args=())
def attention_backward(
    d_out: Tensor,
    d_lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    scale: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    with _no_autocast(q):
        return _implementation(backend).attention_backward(  # type: ignore[no-any-return]
            d_out, d_lse, q, k, v, out, lse, scale
        )


@attention_backward.register_fake
def _(
    d_out: Tensor,
    d_lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    scale: float,
    backend: str,
) -> tuple[Tensor, Tensor, Tensor]:
    return q.new_empty(q.shape), k.new_empty(k.shape), v.new_empty(v.shape)


@torch.library.custom_op("hmc_fast::multi_scale_attention_forward", mutates_args=())
def multi_scale_attention_forward(
    q: Tensor, ks: Sequence[Tensor], vs: Sequence[Tensor], scale: float, backend: str
) -> tuple[list[Tensor], Tensor, Tensor]:
    with _no_autocast(q):
        return _implementation(backend).multi_scale_attention(  # type: ignore[no-any-return]
            q, ks, vs, scale
        )


@multi_scale_attention_forward.register_fake
def _(
    q: Tensor, ks: Sequence[Tensor], vs: Sequence[Tensor], scale: float, backend: str
) -> tuple[list[Tensor], Tensor, Tensor]:
    batch, queries, heads, _ = q.shape
    outs = [q.new_empty(batch, queries, heads, v.shape[3]) for v in vs]
    lse = _empty_lse(q)
    return outs, lse, lse.new_empty(batch, heads, queries, len(vs))


@torch.library.custom_op("hmc_fast::multi_scale_attention_backward", mutates_args=())
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
    backend: str,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    implementation = _implementation(backend)
    with _no_autocast(q):
        return implementation.multi_scale_attention_backward(  # type: ignore[no-any-return]
            d_outs, d_lse, d_weights, q, ks, vs, outs, lse, weights, scale
        )


@multi_scale_attention_backward.register_fake
def _(
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
    backend: str,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    return (
        q.new_empty(q.shape),
        [k.new_empty(k.shape) for k in ks],
        [v.new_empty(v.shape) for v in vs],
    )


@torch.library.custom_op("hmc_fast::gated_projection_forward", mutates_args=())
def gated_projection_forward(
    x: Tensor, attended: Sequence[Tensor], weight: Tensor, bias: Tensor, gamma: Tensor
) -> Tensor:
    """The fused kernel only: the reference is plain PyTorch, which compilers fuse by themselves."""
    return _implementation("triton").gated_projection(  # type: ignore[no-any-return]
        x, attended, weight, bias, gamma
    )


@gated_projection_forward.register_fake
def _(x: Tensor, attended: Sequence[Tensor], weight: Tensor, bias: Tensor, gamma: Tensor) -> Tensor:
    return x.new_empty(x.shape)


@torch.library.custom_op("hmc_fast::gated_projection_backward", mutates_args=())
def gated_projection_backward(
    d_y: Tensor, attended: Sequence[Tensor], weight: Tensor, bias: Tensor, gamma: Tensor
) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    with _no_autocast(d_y):
        return reference.gated_projection_backward(d_y, attended, weight, bias, gamma)


@gated_projection_backward.register_fake
def _(
    d_y: Tensor, attended: Sequence[Tensor], weight: Tensor, bias: Tensor, gamma: Tensor
) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    return (
        [a.new_empty(a.shape) for a in attended],
        weight.new_empty(weight.shape),
        bias.new_empty(bias.shape),
        gamma.new_empty(gamma.shape),
    )


def decompositions() -> dict[Any, Callable[..., Any]]:
    """Table for ``ExportedProgram.run_decompositions``: the ops as plain ATen, in one piece.

    The decomposed graph forms the whole score matrix, which exporters to other runtimes need.
    """
    return {
        torch.ops.hmc_fast.attention_forward.default: _decompose_attention,
        torch.ops.hmc_fast.multi_scale_attention_forward.default: _decompose_multi_scale,
        torch.ops.hmc_fast.gated_projection_forward.default: reference.gated_projection,
    }


def _decompose_attention(
    q: Tensor, k: Tensor, v: Tensor, scale: float, backend: str
) -> tuple[Tensor, Tensor]:
    return reference.attention(q, k, v, scale, query_chunk=q.shape[1])


def _decompose_multi_scale(
    q: Tensor, ks: Sequence[Tensor], vs: Sequence[Tensor], scale: float, backend: str
) -> tuple[list[Tensor], Tensor, Tensor]:
    return reference.multi_scale_attention(q, ks, vs, scale, query_chunk=q.shape[1])


def _empty_lse(q: Tensor) -> Tensor:
    batch, queries, heads, _ = q.shape
    return q.new_empty(batch, heads, queries, dtype=reference.compute_dtype(q.dtype))


def _save_attention(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    q, k, v, ctx.scale, ctx.backend = inputs
    ctx.save_for_backward(q, k, v, *output)


def _differentiate_attention(ctx: Any, d_out: Tensor, d_lse: Tensor) -> tuple[Any, ...]:
    q, k, v, out, lse = ctx.saved_tensors
    gradients = attention_backward(d_out, d_lse, q, k, v, out, lse, ctx.scale, ctx.backend)
    return (*gradients, None, None)


def _save_multi_scale(
    ctx: Any, inputs: tuple[Any, ...], output: tuple[list[Tensor], Tensor, Tensor]
) -> None:
    q, ks, vs, ctx.scale, ctx.backend = inputs
    outs, lse, weights = output
    ctx.sources = len(ks)
    ctx.save_for_backward(q, *ks, *vs, *outs, lse, weights)


def _differentiate_multi_scale(
    ctx: Any, d_outs: list[Tensor], d_lse: Tensor, d_weights: Tensor
) -> tuple[Any, ...]:
    q, *per_source, lse, weights = ctx.saved_tensors
    n = ctx.sources
    ks, vs, outs = per_source[:n], per_source[n : 2 * n], per_source[2 * n :]
    dq, dks, dvs = multi_scale_attention_backward(
        d_outs, d_lse, d_weights, q, ks, vs, outs, lse, weights, ctx.scale, ctx.backend
    )
    return dq, dks, dvs, None, None


def _save_gated_projection(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    _, attended, weight, bias, gamma = inputs
    ctx.save_for_backward(weight, bias, gamma, *attended)


def _differentiate_gated_projection(ctx: Any, d_y: Tensor) -> tuple[Any, ...]:
    weight, bias, gamma, *attended = ctx.saved_tensors
    return d_y, *gated_projection_backward(d_y, attended, weight, bias, gamma)


def _refuse_double_backward(ctx: Any, *gradients: Any) -> None:
    raise RuntimeError(
        "hmc_fast attention is differentiable once: double backward (create_graph=True) is not "
        "supported; use hmc_fast.kernels.reference.attention, which is plain PyTorch, instead"
    )


attention_forward.register_autograd(_differentiate_attention, setup_context=_save_attention)
multi_scale_attention_forward.register_autograd(
    _differentiate_multi_scale, setup_context=_save_multi_scale
)
gated_projection_forward.register_autograd(
    _differentiate_gated_projection, setup_context=_save_gated_projection
)
gated_projection_backward.register_autograd(_refuse_double_backward)
attention_backward.register_autograd(_refuse_double_backward)
multi_scale_attention_backward.register_autograd(_refuse_double_backward)


def _matmul_flops(q_shape: Sequence[int], k_shape: Sequence[int], v_shape: Sequence[int]) -> int:
    batch, queries, heads, qk_head_dim = q_shape
    return 2 * batch * heads * queries * k_shape[1] * (qk_head_dim + v_shape[3])


@register_flop_formula(torch.ops.hmc_fast.attention_forward)
def _attention_flops(
    q_shape: Sequence[int],
    k_shape: Sequence[int],
    v_shape: Sequence[int],
    *args: Any,
    **kwargs: Any,
) -> int:
    return _matmul_flops(q_shape, k_shape, v_shape)


@register_flop_formula(torch.ops.hmc_fast.multi_scale_attention_forward)
def _multi_scale_flops(
    q_shape: Sequence[int],
    k_shapes: Sequence[Sequence[int]],
    v_shapes: Sequence[Sequence[int]],
    *args: Any,
    **kwargs: Any,
) -> int:
    return sum(_matmul_flops(q_shape, k, v) for k, v in zip(k_shapes, v_shapes, strict=True))


@register_flop_formula(torch.ops.hmc_fast.gated_projection_forward)
def _gated_projection_flops(
    x_shape: Sequence[int],
    attended_shapes: Sequence[Sequence[int]],
    *args: Any,
    **kwargs: Any,
) -> int:
    return sum(2 * prod(attended) * x_shape[-1] for attended in attended_shapes)
