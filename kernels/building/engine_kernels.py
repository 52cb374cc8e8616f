"""Attention as an inference engine launches it: contiguous tensors, 32-bit integers, no statistics.

An engine passes input pointers, then integers, then output pointers, and no floating-point number
(TensorRT's ahead-of-time plugins), so the scale is compiled in. These kernels give that order to
:func:`_attention_forward_kernel` without splits; log-sum-exp and scale weights are not written.
"""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import triton
import triton.language as tl
from torch import Tensor

from hmc_fast.kernels.fused.forward import _attention_forward_kernel, plan_attention_forward
from hmc_fast.kernels.fused.launch import Launch, Target

ENGINE_SOURCES = (1, 2)
"""Numbers of sources that have an engine kernel: self-attention, and C3 with C4."""


@triton.jit
def _contiguous_strides(tokens, HEADS: tl.constexpr, D: tl.constexpr):
    """Strides of batch, token and head of a contiguous ``[B, tokens, HEADS, D]``."""
    return (tokens * (HEADS * D), HEADS * D, D)


@triton.jit
def _attention_engine_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    queries,
    keys,
    out_ptr,
    HEADS: tl.constexpr,
    LOG2_SCALE: tl.constexpr,
    D_QK: tl.constexpr,
    D_VS: tl.constexpr,
    BLOCK_QK: tl.constexpr,
    BLOCK_DVS: tl.constexpr,
    WHOLE_BLOCKS: tl.constexpr,
    NEGATE_Q: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Grid: (query blocks × B·H, value chunks)."""
    _attention_forward_kernel(
        q_ptr,
        (k_ptr,),
        (v_ptr,),
        (out_ptr,),
        out_ptr,
        out_ptr,
        _contiguous_strides(queries, HEADS, D_QK),
        (_contiguous_strides(keys, HEADS, D_QK),),
        (_contiguous_strides(keys, HEADS, D_VS[0]),),
        (keys,),
        (keys,),
        queries,
        HEADS,
        0,
        LOG2_SCALE,
        D_QK,
        D_VS,
        BLOCK_QK,
        BLOCK_DVS,
        WHOLE_BLOCKS,
        NEGATE_Q,
        PRECISION,
        False,
        BLOCK_M,
        BLOCK_N,
    )


@triton.jit
def _two_source_attention_engine_kernel(
    q_ptr,
    k0_ptr,
    v0_ptr,
    k1_ptr,
    v1_ptr,
    queries,
    keys0,
    keys1,
    out0_ptr,
    out1_ptr,
    HEADS: tl.constexpr,
    LOG2_SCALE: tl.constexpr,
    D_QK: tl.constexpr,
    D_VS: tl.constexpr,
    BLOCK_QK: tl.constexpr,
    BLOCK_DVS: tl.constexpr,
    WHOLE_BLOCKS: tl.constexpr,
    NEGATE_Q: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Grid: (query blocks × B·H, value chunks). Two sources under one softmax."""
    _attention_forward_kernel(
        q_ptr,
        (k0_ptr, k1_ptr),
        (v0_ptr, v1_ptr),
        (out0_ptr, out1_ptr),
        out0_ptr,
        out0_ptr,
        _contiguous_strides(queries, HEADS, D_QK),
        (_contiguous_strides(keys0, HEADS, D_QK), _contiguous_strides(keys1, HEADS, D_QK)),
        (_contiguous_strides(keys0, HEADS, D_VS[0]), _contiguous_strides(keys1, HEADS, D_VS[1])),
        (keys0, keys1),
        (keys0, keys1),
        queries,
        HEADS,
        0,
        LOG2_SCALE,
        D_QK,
        D_VS,
        BLOCK_QK,
        BLOCK_DVS,
        WHOLE_BLOCKS,
        NEGATE_Q,
        PRECISION,
        False,
        BLOCK_M,
        BLOCK_N,
    )


def plan_engine_attention(
    target: Target,
    q: Tensor,
    ks: Sequence[Tensor],
    vs: Sequence[Tensor],
    scale: float,
    outs: Sequence[Tensor],
) -> Launch:
    """The one launch that fills ``outs``; all tensors are contiguous, meta tensors as well.

    Raises ``ValueError`` for a number of sources that has no engine kernel.
    """
    if len(ks) not in ENGINE_SOURCES:
        raise ValueError(f"{len(ks)} sources: engine kernels exist for 1 or 2 sources")
    batch, queries, heads, _ = q.shape
    lse = torch.empty(batch, heads, queries, device="meta")
    weights = torch.empty(batch, heads, queries, len(ks), device="meta")
    (forward,) = plan_attention_forward(
        replace(target, multiprocessors=1), q, ks, vs, scale, outs, lse, weights
    )
    constants = {name: v for name, v in forward.constants.items() if name != "WRITE_STATISTICS"}
    constants |= {"HEADS": heads, "LOG2_SCALE": forward.arguments["log2_scale"]}
    kernel: Any
    arguments: dict[str, Any]
    if len(ks) == 1:
        kernel = _attention_engine_kernel
        arguments = {"q_ptr": q, "k_ptr": ks[0], "v_ptr": vs[0]}
        arguments |= {"queries": queries, "keys": ks[0].shape[1], "out_ptr": outs[0]}
    else:
        kernel = _two_source_attention_engine_kernel
        arguments = {"q_ptr": q, "k0_ptr": ks[0], "v0_ptr": vs[0], "k1_ptr": ks[1], "v1_ptr": vs[1]}
        arguments |= {"queries": queries, "keys0": ks[0].shape[1], "keys1": ks[1].shape[1]}
        arguments |= {"out0_ptr": outs[0], "out1_ptr": outs[1]}
    return replace(forward, kernel=kernel, arguments=arguments, constants=constants)
