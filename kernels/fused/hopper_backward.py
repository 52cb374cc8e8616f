"""The backward kernel for a source's keys and values on Hopper: warps that load, and compute.

Built as :mod:`hmc_fast.kernels.fused.hopper_forward`, with the mathematics of
:mod:`hmc_fast.kernels.fused.backward`: a program owns ``BLOCK_N`` keys and walks all queries, so
that each gradient is written once, by one program. The rows of statistics come through descriptors
too, which puts them as far ahead as the tiles. Several sources take a launch each.
"""

from collections.abc import Sequence
from typing import Any

import triton
import triton.language as tl
from torch import Tensor

from hmc_fast.kernels.fused.backward import padded_rows, plan_attention_backward
from hmc_fast.kernels.fused.descriptors import find_tile, head_tiles
from hmc_fast.kernels.fused.launch import Launch, Target, ceil_div
from hmc_fast.kernels.fused.primitives import Rows, contiguous_head, store_rows
from hmc_fast.kernels.fused.tiles import Tile

KERNEL = "specialised_backward_kv"
"""Its name in a tile file."""


@triton.jit
def _specialised_backward_kv_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    d_out_ptr,
    log2_lse_ptr,
    shift_ptr,
    dk_ptr,
    dv_ptr,
    q_strides,
    k_strides,
    v_strides,
    d_out_strides,
    keys,
    queries,
    heads,
    log2_scale,
    scale,
    D_QK: tl.constexpr,
    D_V: tl.constexpr,
    NEGATE_Q: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Grid: (key blocks × B·H,). ``D_QK`` and ``D_V`` are powers of two."""
    key_blocks = tl.cdiv(keys, BLOCK_N)
    first_key = (tl.program_id(0) % key_blocks) * BLOCK_N
    batch_head = tl.program_id(0) // key_blocks

    k_tiles = head_tiles(k_ptr, k_strides, keys, batch_head, heads, BLOCK_N, D_QK)
    k = k_tiles.load([first_key, 0])  # [BLOCK_N, D_QK]
    if NEGATE_Q:
        k = -k
    v_tiles = head_tiles(v_ptr, v_strides, keys, batch_head, heads, BLOCK_N, D_V)
    v = v_tiles.load([first_key, 0])  # [BLOCK_N, D_V]
    q_tiles = head_tiles(q_ptr, q_strides, queries, batch_head, heads, BLOCK_M, D_QK)
    d_out_tiles = head_tiles(d_out_ptr, d_out_strides, queries, batch_head, heads, BLOCK_M, D_V)
    rows = padded_rows(queries)
    first_statistic = tl.cast(batch_head, tl.int64) * rows
    lse_rows = tl.make_tensor_descriptor(log2_lse_ptr + first_statistic, [rows], [1], [BLOCK_M])
    shift_rows = tl.make_tensor_descriptor(shift_ptr + first_statistic, [rows], [1], [BLOCK_M])

    dk = tl.zeros([BLOCK_N, D_QK], tl.float32)
    dv = tl.zeros([BLOCK_N, D_V], tl.float32)
    for start in tl.range(0, queries, BLOCK_M, warp_specialize=True):
        q = q_tiles.load([start, 0])  # [BLOCK_M, D_QK], zero beyond the last query
        log2_lse = lse_rows.load([start])  # [BLOCK_M], +∞ beyond the last query
        scores = tl.dot(k, tl.trans(q))  # [BLOCK_N, BLOCK_M]
        p = tl.exp2(scores * log2_scale - log2_lse[None, :])  # [BLOCK_N, BLOCK_M]
        d_out = d_out_tiles.load([start, 0])  # [BLOCK_M, D_V]
        dv = tl.dot(p.to(d_out.dtype), d_out, dv)
        d_p = tl.dot(v, tl.trans(d_out))  # [BLOCK_N, BLOCK_M]
        shift = shift_rows.load([start])  # [BLOCK_M]
        d_scores = p * (d_p + shift[None, :])  # [BLOCK_N, BLOCK_M]
        dk = tl.dot(d_scores.to(q.dtype), q, dk)

    dk_head = contiguous_head(dk_ptr, keys, batch_head, heads, D_QK)
    dks = Rows(dk_head, keys, heads * D_QK)
    store_rows(dks, dk * scale, first_key, 0, BLOCK_N, D_QK, D_QK)
    dv_head = contiguous_head(dv_ptr, keys, batch_head, heads, D_V)
    store_rows(Rows(dv_head, keys, heads * D_V), dv, first_key, 0, BLOCK_N, D_V, D_V)


def plan_hopper_attention_backward(
    target: Target,
    d_outs: Sequence[Tensor],
    d_lse: Tensor,
    d_weights: Tensor,
    q: Tensor,
    ks: Sequence[Tensor],
    vs: Sequence[Tensor],
    *rest: Any,
) -> list[Launch]:
    """As :func:`plan_attention_backward`, ``dk`` and ``dv`` by specialised kernels where they can.

    They take sources of which each has at least a block of keys; see :func:`find_tile` for the
    tensors.
    """
    delta, dq, *others = plan_attention_backward(target, d_outs, d_lse, d_weights, q, ks, vs, *rest)
    sources = list(zip(ks, vs, d_outs, strict=True))
    tiles = [find_tile(target, KERNEL, q, v, k, d_out) for k, v, d_out in sources]
    chosen = [
        tile
        for tile, k in zip(tiles, ks, strict=True)
        if tile is not None and k.shape[1] >= tile.blocks["BLOCK_N"]
    ]
    if len(chosen) < len(sources):
        return [delta, dq, *others]
    planned = others[0]
    return [delta, dq, *(_plan_source(planned, tile, s) for s, tile in enumerate(chosen))]


def _plan_source(planned: Launch, tile: Tile, s: int) -> Launch:
    """The launch for source ``s`` of what ``planned`` does with the pointer kernel."""
    arguments, constants = planned.arguments, planned.constants
    q, k = arguments["q_ptr"], arguments["k_ptrs"][s]
    log2_lse, *shifts = arguments["statistics_ptrs"]
    keys = arguments["lengths"][s]
    names = ("k_strides", "v_strides", "d_out_strides")
    return Launch.of(
        _specialised_backward_kv_kernel,
        (ceil_div(keys, tile.blocks["BLOCK_N"]) * q.shape[0] * q.shape[2],),
        tile,
        {
            "q_ptr": q,
            "k_ptr": k,
            "v_ptr": arguments["v_ptrs"][s],
            "d_out_ptr": arguments["d_out_ptrs"][s],
            "log2_lse_ptr": log2_lse,
            "shift_ptr": shifts[s],
            "dk_ptr": arguments["dk_ptrs"][s],
            "dv_ptr": arguments["dv_ptrs"][s],
            "q_strides": arguments["q_strides"],
            **{name: arguments[name][s] for name in names},
            "keys": keys,
            **{name: arguments[name] for name in ("queries", "heads", "log2_scale", "scale")},
        },
        {
            "D_QK": constants["D_QK"],
            "D_V": constants["D_VS"][s],
            "NEGATE_Q": constants["NEGATE_Q"],
        },
        scratch=True,
    )
