"""The forward kernel for a source on Hopper: warps that load, and warps that compute.

The loop is warp-specialised: one group of warps fetches tiles of K and V through tensor descriptors
(the tensor memory accelerator) while two groups of 64 queries each compute, and registers move from
the first to the others. No barrier holds all warps inside the loop, so the softmax of one group
runs under the products of the other. It is the structure of FlashAttention-3 (Shah et al. 2024),
written in plain Triton. The mathematics is that of :mod:`hmc_fast.kernels.fused.forward`.

Several sources take a launch each, and one more that joins them under one softmax
(:mod:`hmc_fast.kernels.fused.source_join`).
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from hmc_fast.kernels.fused.descriptors import find_tile, head_tiles
from hmc_fast.kernels.fused.forward import plan_attention_forward
from hmc_fast.kernels.fused.launch import Launch, Target, ceil_div, log2_scale, row_strides
from hmc_fast.kernels.fused.primitives import Rows, contiguous_head, store_rows
from hmc_fast.kernels.fused.source_join import plan_source_join
from hmc_fast.kernels.fused.tiles import Tile

KERNEL = "specialised_forward"
"""Its name in a tile file."""
KEYS_WORTH_A_JOIN = 4096
"""Keys of all sources from which on a launch each is planned: joining reads and writes the outputs
once more, which faster products must make up for."""


@triton.jit
def _specialised_forward_kernel(
    q_ptr,
    k_ptr,
    v_ptr,
    out_ptr,
    lse_ptr,
    q_strides,
    k_strides,
    v_strides,
    keys,
    queries,
    heads,
    log2_scale,
    D_QK: tl.constexpr,
    D_V: tl.constexpr,
    WHOLE_BLOCKS: tl.constexpr,
    NEGATE_Q: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Grid: (query blocks × B·H,). ``D_QK`` and ``D_V`` are powers of two."""
    query_blocks = tl.cdiv(queries, BLOCK_M)
    first_row = (tl.program_id(0) % query_blocks) * BLOCK_M
    batch_head = tl.program_id(0) // query_blocks

    q_tiles = head_tiles(q_ptr, q_strides, queries, batch_head, heads, BLOCK_M, D_QK)
    q = q_tiles.load([first_row, 0])  # [BLOCK_M, D_QK], zero beyond the last query
    if NEGATE_Q:
        q = -q
    k_tiles = head_tiles(k_ptr, k_strides, keys, batch_head, heads, BLOCK_N, D_QK)
    v_tiles = head_tiles(v_ptr, v_strides, keys, batch_head, heads, BLOCK_N, D_V)

    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, D_V], tl.float32)
    for start in tl.range(0, keys, BLOCK_N, warp_specialize=True):
        k = k_tiles.load([start, 0])  # [BLOCK_N, D_QK], zero beyond the last key
        scores = tl.dot(q, tl.trans(k))  # [BLOCK_M, BLOCK_N]
        if not WHOLE_BLOCKS:
            # Added, not selected: Hopper adds at twice the rate.
            beyond = tl.where(tl.arange(0, BLOCK_N) < keys - start, 0.0, float("-inf"))
            scores += beyond[None, :]
        new_top = tl.maximum(top, tl.max(scores, 1) * log2_scale)  # [BLOCK_M]
        p = tl.exp2(scores * log2_scale - new_top[:, None])  # [BLOCK_M, BLOCK_N]
        keep = tl.exp2(top - new_top)  # [BLOCK_M]
        total = total * keep + tl.sum(p, 1)
        v = v_tiles.load([start, 0])  # [BLOCK_N, D_V]
        acc = tl.dot(p.to(v.dtype), v, acc * keep[:, None])
        top = new_top

    out_head = contiguous_head(out_ptr, queries, batch_head, heads, D_V)
    outs = Rows(out_head, queries, heads * D_V)
    store_rows(outs, acc / total[:, None], first_row, 0, BLOCK_M, D_V, D_V)
    row = first_row + tl.arange(0, BLOCK_M)
    lse = (top + tl.log2(total)) * 0.6931471805599453  # ln 2; [BLOCK_M]
    lse_head = lse_ptr + tl.cast(batch_head, tl.int64) * queries
    tl.store(lse_head + row, lse, mask=row < queries)


def plan_hopper_attention_forward(
    target: Target,
    q: Tensor,
    ks: Sequence[Tensor],
    vs: Sequence[Tensor],
    scale: float,
    outs: Sequence[Tensor],
    lse: Tensor,
    weights: Tensor,
) -> list[Launch]:
    """As :func:`plan_attention_forward`, by specialised kernels where they can.

    They take at least a block of queries; see :func:`find_tile` for the tensors. Several sources
    must have :data:`KEYS_WORTH_A_JOIN` and queries that fill the GPU. Where the pointer kernel
    would split the keys to fill the GPU, it does so.
    """
    launches = plan_attention_forward(target, q, ks, vs, scale, outs, lse, weights)
    found = [find_tile(target, KERNEL, q, v, k) for k, v in zip(ks, vs, strict=True)]
    tiles = [tile for tile in found if tile and q.shape[1] >= tile.blocks["BLOCK_M"]]
    if len(launches) > 1 or len(tiles) < len(ks):
        return launches
    if len(ks) == 1:
        return [_plan_source(tiles[0], q, ks[0], vs[0], scale, outs[0], lse)]
    blocks = min(ceil_div(q.shape[1], tile.blocks["BLOCK_M"]) for tile in tiles)
    fills = blocks * q.shape[0] * q.shape[2] >= target.multiprocessors
    if not fills or sum(k.shape[1] for k in ks) < KEYS_WORTH_A_JOIN:
        return launches
    lses = [torch.empty_like(lse) for _ in ks]
    sources = zip(tiles, ks, vs, outs, lses, strict=True)
    alone = [_plan_source(tile, q, k, v, scale, out, own) for tile, k, v, out, own in sources]
    return [*alone, plan_source_join(target, q, lses, outs, lse, weights)]


def _plan_source(
    tile: Tile, q: Tensor, k: Tensor, v: Tensor, scale: float, out: Tensor, lse: Tensor
) -> Launch:
    """Attention to one source alone."""
    batch, queries, heads, d_qk = q.shape
    keys = k.shape[1]
    return Launch.of(
        _specialised_forward_kernel,
        (ceil_div(queries, tile.blocks["BLOCK_M"]) * batch * heads,),
        tile,
        {
            "q_ptr": q,
            "k_ptr": k,
            "v_ptr": v,
            "out_ptr": out,
            "lse_ptr": lse,
            "q_strides": row_strides(q),
            "k_strides": row_strides(k),
            "v_strides": row_strides(v),
            "keys": keys,
            "queries": queries,
            "heads": heads,
            "log2_scale": log2_scale(scale),
        },
        {
            "D_QK": d_qk,
            "D_V": v.shape[3],
            "WHOLE_BLOCKS": keys % tile.blocks["BLOCK_N"] == 0,
            "NEGATE_Q": scale < 0,
        },
        scratch=True,
    )
