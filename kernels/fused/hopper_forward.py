"""The forward kernel for one source on Hopper: warps that load, and warps that compute.

The loop is warp-specialised: one group of warps fetches tiles of K and V through tensor descriptors
(the tensor memory accelerator) while two groups of 64 queries each compute, and registers move from
the first to the others. No barrier holds all warps inside the loop, so the softmax of one group
runs under the products of the other. It is the structure of FlashAttention-3 (Shah et al. 2024),
written in plain Triton. The mathematics is that of :mod:`hmc_fast.kernels.fused.forward`.
"""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from hmc_fast.kernels.fused.descriptors import find_tile, head_tiles
from hmc_fast.kernels.fused.forward import plan_attention_forward
from hmc_fast.kernels.fused.launch import Launch, Target, ceil_div, log2_scale, row_strides
from hmc_fast.kernels.fused.primitives import Rows, contiguous_head, store_rows

KERNEL = "specialised_forward"
"""Its name in a tile file."""


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
            inside = (start + tl.arange(0, BLOCK_N))[None, :] < keys
            scores = tl.where(inside, scores, float("-inf"))
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
    """As :func:`plan_attention_forward`, by the specialised kernel where it can.

    It takes one source and at least a block of queries; see :func:`find_tile` for the tensors.
    Where the pointer kernel would split the keys to fill the GPU, it does so.
    """
    launches = plan_attention_forward(target, q, ks, vs, scale, outs, lse, weights)
    key, value = ks[0], vs[0]
    batch, queries, heads, d_qk = q.shape
    single = len(ks) == 1 and len(launches) == 1
    tile = find_tile(target, KERNEL, q, value, key) if single else None
    if tile is None or queries < tile.blocks["BLOCK_M"]:
        return launches
    launch = Launch.of(
        _specialised_forward_kernel,
        (ceil_div(queries, tile.blocks["BLOCK_M"]) * batch * heads,),
        tile,
        {
            "q_ptr": q,
            "k_ptr": key,
            "v_ptr": value,
            "out_ptr": outs[0],
            "lse_ptr": lse,
            "q_strides": row_strides(q),
            "k_strides": row_strides(key),
            "v_strides": row_strides(value),
            "keys": key.shape[1],
            "queries": queries,
            "heads": heads,
            "log2_scale": log2_scale(scale),
        },
        {
            "D_QK": d_qk,
            "D_V": value.shape[3],
            "WHOLE_BLOCKS": key.shape[1] % tile.blocks["BLOCK_N"] == 0,
            "NEGATE_Q": scale < 0,
        },
        scratch=True,
    )
    return [launch]
