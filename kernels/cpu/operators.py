"""Blocked attention on a CPU behind the contract of :mod:`hmc_fast.kernels.reference`.

Softmax and sums are computed in fp32. So are products, but for those of bf16 inputs on processors
with fast bf16 products (:mod:`hmc_fast.kernels.cpu.precision`). Memory beside inputs and outputs is
a block of scores and copies of what belongs to a few heads, whatever the number of tokens squared.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from hmc_fast.kernels.cpu import flash
from hmc_fast.kernels.cpu.backward import QuerySide, differentiate
from hmc_fast.kernels.cpu.blocks import BACKWARD, FORWARD, head_groups
from hmc_fast.kernels.cpu.compiled import attention as compiled
from hmc_fast.kernels.cpu.forward import attend
from hmc_fast.kernels.cpu.precision import products_of, rounds_products


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """As :func:`hmc_fast.kernels.reference.attention`."""
    if flash.takes_flash(q, k, v):
        return flash.attention(q, k, v, scale)
    outs, lse, _ = multi_scale_attention(q, [k], [v], scale)
    return outs[0], lse


def multi_scale_attention(
    q: Tensor, ks: Sequence[Tensor], vs: Sequence[Tensor], scale: float
) -> tuple[list[Tensor], Tensor, Tensor]:
    """As :func:`hmc_fast.kernels.reference.multi_scale_attention`."""
    if compiled.takes(q, ks, vs):
        return compiled.multi_scale_attention(q, ks, vs, scale)
    batch, queries, heads, _ = q.shape
    outs = [q.new_empty(batch, queries, heads, v.shape[3]) for v in vs]
    lse = q.new_empty(batch, heads, queries, dtype=torch.float32)
    weights = lse.new_empty(batch, heads, queries, len(vs))
    with products_of(q, ks):
        for group in head_groups(q, max(k.shape[1] for k in ks), FORWARD):
            attend(
                group.tokens(q),
                [group.tokens(k) for k in ks],
                [group.tokens(v) for v in vs],
                scale,
                [group.tokens(out) for out in outs],
                lse[group.film, group.heads],
                weights[group.film, group.heads],
            )
    return outs, lse, weights


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
    weights = torch.ones_like(lse).unsqueeze(3)
    dq, dks, dvs = multi_scale_attention_backward(
        [d_out], d_lse, torch.zeros_like(weights), q, [k], [v], [out], lse, weights, scale
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
    """As :func:`hmc_fast.kernels.reference.multi_scale_attention_backward`."""
    if compiled.takes_backward(q, ks, vs):
        return compiled.multi_scale_attention_backward(
            d_outs, d_lse, d_weights, q, ks, vs, outs, lse, weights, scale
        )
    dq = torch.empty_like(q, memory_format=torch.contiguous_format)
    dks = [torch.empty_like(k, memory_format=torch.contiguous_format) for k in ks]
    dvs = [torch.empty_like(v, memory_format=torch.contiguous_format) for v in vs]
    with products_of(q, ks):
        for group in head_groups(q, max(k.shape[1] for k in ks), BACKWARD):
            side = QuerySide.of(
                group.tokens(q),
                [group.tokens(k) for k in ks],
                [group.tokens(out) for out in outs],
                lse[group.film, group.heads],
                weights[group.film, group.heads],
                [group.tokens(d_out) for d_out in d_outs],
                d_lse[group.film, group.heads],
                d_weights[group.film, group.heads],
                scale,
                rounds=rounds_products(q, ks),
            )
            differentiate(
                side,
                [group.tokens(k) for k in ks],
                [group.tokens(v) for v in vs],
                scale,
                group.tokens(dq),
                [group.tokens(dk) for dk in dks],
                [group.tokens(dv) for dv in dvs],
            )
    return dq, dks, dvs
