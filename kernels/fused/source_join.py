"""Joins sources, each attended to on its own, under one softmax.

Source ``s`` alone gave ``out_s`` and ``lse_s``. Over the union of all keys it has the weight
``exp(lse_s - lse)``, with which its output is multiplied in place. So outputs are rounded to their
dtype twice; in fp32 their tiles would not fit beside those of the kernels that write them.
"""

from collections.abc import Sequence

import triton
import triton.language as tl
from torch import Tensor

from hmc_fast.kernels.fused.launch import Launch, Target, bits, ceil_div
from hmc_fast.kernels.fused.primitives import Rows, contiguous_head, load_rows, store_rows


@triton.jit
def _join_sources_kernel(
    out_ptrs,
    source_lse_ptrs,
    lse_ptr,
    weights_ptr,
    queries,
    heads,
    D_VS: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Grid: (query blocks × B·H,). ``D_VS`` are powers of two."""
    SOURCES: tl.constexpr = len(out_ptrs)
    query_blocks = tl.cdiv(queries, BLOCK_M)
    first_row = (tl.program_id(0) % query_blocks) * BLOCK_M
    batch_head = tl.cast(tl.program_id(0) // query_blocks, tl.int64)
    row = first_row + tl.arange(0, BLOCK_M)
    inside = row < queries
    statistic = batch_head * queries + row  # [BLOCK_M]

    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    for s in tl.static_range(SOURCES):
        top = tl.maximum(top, tl.load(source_lse_ptrs[s] + statistic, mask=inside, other=0.0))
    total = tl.zeros([BLOCK_M], tl.float32)
    for s in tl.static_range(SOURCES):
        source_lse = tl.load(source_lse_ptrs[s] + statistic, mask=inside, other=0.0)
        total += tl.exp(source_lse - top)
    tl.store(lse_ptr + statistic, top + tl.log(total), mask=inside)

    for s in tl.static_range(SOURCES):
        source_lse = tl.load(source_lse_ptrs[s] + statistic, mask=inside, other=0.0)
        weight = tl.exp(source_lse - top) / total  # [BLOCK_M]
        tl.store(weights_ptr + statistic * SOURCES + s, weight, mask=inside)
        out_head = contiguous_head(out_ptrs[s], queries, batch_head, heads, D_VS[s])
        outs = Rows(out_head, queries, heads * D_VS[s])
        out = load_rows(outs, first_row, 0, BLOCK_M, D_VS[s], D_VS[s], False)  # [BLOCK_M, D_V]
        store_rows(outs, out * weight[:, None], first_row, 0, BLOCK_M, D_VS[s], D_VS[s])


def plan_source_join(
    target: Target,
    q: Tensor,
    source_lses: Sequence[Tensor],
    outs: Sequence[Tensor],
    lse: Tensor,
    weights: Tensor,
) -> Launch:
    """The launch that fills ``lse`` and ``weights`` and rescales ``outs``, all contiguous.

    It reads ``source_lses[s] [B, H, M]`` in fp32. Its tile is that of splits, which it resembles.
    """
    batch, queries, heads, d_qk = q.shape
    d_vs = tuple(out.shape[3] for out in outs)
    tile = target.tiles.choose("combine_splits", bits(q), d_qk, max(d_vs), queries)
    return Launch.of(
        _join_sources_kernel,
        (ceil_div(queries, tile.blocks["BLOCK_M"]) * batch * heads,),
        tile,
        {
            "out_ptrs": tuple(outs),
            "source_lse_ptrs": tuple(source_lses),
            "lse_ptr": lse,
            "weights_ptr": weights,
            "queries": queries,
            "heads": heads,
        },
        {"D_VS": d_vs},
    )
