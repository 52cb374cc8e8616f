"""Forward kernels: one launch walks every source, or a slice of every source (split-KV).

A program owns ``BLOCK_M`` queries of one batch and head and one chunk of each source's value
columns. It attends to each source with its own running maximum and joins them under one softmax
at the end, so no score is ever stored. With several splits each writes a partial result, which
:func:`_combine_splits_kernel` weighs by ``exp(lse_split - lse)``.

Outputs are contiguous: ``out_s [splits, B, M, H, Dv_s]``, ``lse [splits, B, H, M]``,
``weights [splits, B, H, M, S]``.
"""

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from hmc_fast.kernels.fused.launch import (
    Launch,
    Target,
    bits,
    ceil_div,
    log2_scale,
    padded,
    row_strides,
    value_block,
)
from hmc_fast.kernels.fused.primitives import (
    Rows,
    contiguous_head,
    head_rows,
    load_rows,
    readable_column,
    store_rows,
)


@triton.jit
def _attend(
    q,
    keys,
    values,
    begin,
    column,
    log2_scale,
    D_QK: tl.constexpr,
    D_V: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_QK: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    WHOLE_BLOCKS: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """Keys from ``begin`` on of one source: accumulator, running maximum (log2) and sum."""
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    total = tl.zeros([BLOCK_M], tl.float32)
    acc = tl.zeros([BLOCK_M, BLOCK_DV], tl.float32)
    for start in tl.range(begin, keys.count, BLOCK_N):
        # [BLOCK_N, BLOCK_QK]
        k = load_rows(keys, start, 0, BLOCK_N, D_QK, BLOCK_QK, WHOLE_BLOCKS)
        scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)  # [BLOCK_M, BLOCK_N]
        if not WHOLE_BLOCKS:
            inside = (start + tl.arange(0, BLOCK_N))[None, :] < keys.count
            scores = tl.where(inside, scores, float("-inf"))
        new_top = tl.maximum(top, tl.max(scores, 1) * log2_scale)  # [BLOCK_M]
        p = tl.exp2(scores * log2_scale - new_top[:, None])  # [BLOCK_M, BLOCK_N]
        keep = tl.exp2(top - new_top)  # [BLOCK_M]
        total = total * keep + tl.sum(p, 1)
        # [BLOCK_N, BLOCK_DV]
        v = load_rows(values, start, column, BLOCK_N, D_V, BLOCK_DV, WHOLE_BLOCKS)
        acc = tl.dot(p.to(v.dtype), v, acc * keep[:, None], input_precision=PRECISION)
        top = new_top
    return acc, top, total


@triton.jit
def _attention_forward_kernel(
    q_ptr,
    k_ptrs,
    v_ptrs,
    out_ptrs,
    lse_ptr,
    weights_ptr,
    q_strides,
    k_strides,
    v_strides,
    lengths,
    spans,
    queries,
    heads,
    batch_heads,
    log2_scale,
    D_QK: tl.constexpr,
    D_VS: tl.constexpr,
    BLOCK_QK: tl.constexpr,
    BLOCK_DVS: tl.constexpr,
    WHOLE_BLOCKS: tl.constexpr,
    NEGATE_Q: tl.constexpr,
    PRECISION: tl.constexpr,
    WRITE_STATISTICS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Grid: (query blocks × B·H, value chunks, splits). Split ``i`` takes the ``i``-th span.

    ``lse`` and ``weights`` are written with ``WRITE_STATISTICS`` alone.
    """
    SOURCES: tl.constexpr = len(k_ptrs)
    query_blocks = tl.cdiv(queries, BLOCK_M)
    first_row = (tl.program_id(0) % query_blocks) * BLOCK_M
    batch_head = tl.program_id(0) // query_blocks
    chunk = tl.program_id(1)
    split = tl.program_id(2)

    q_rows = head_rows(q_ptr, q_strides, queries, batch_head, heads)
    q = load_rows(q_rows, first_row, 0, BLOCK_M, D_QK, BLOCK_QK, False)  # [BLOCK_M, BLOCK_QK]
    if NEGATE_Q:
        q = -q

    accs = ()
    tops = ()
    totals = ()
    for s in tl.static_range(SOURCES):
        begin = split * spans[s]
        end = tl.minimum(begin + spans[s], lengths[s])
        acc, source_top, source_total = _attend(
            q,
            head_rows(k_ptrs[s], k_strides[s], end, batch_head, heads),
            head_rows(v_ptrs[s], v_strides[s], end, batch_head, heads),
            begin,
            readable_column(chunk, D_VS[s], BLOCK_DVS[s]),
            log2_scale,
            D_QK,
            D_VS[s],
            BLOCK_M,
            BLOCK_N,
            BLOCK_QK,
            BLOCK_DVS[s],
            WHOLE_BLOCKS[s],
            PRECISION,
        )
        accs = accs + (acc,)  # each [BLOCK_M, BLOCK_DV]
        tops = tops + (source_top,)  # each [BLOCK_M]
        totals = totals + (source_total,)  # each [BLOCK_M]

    top = tops[0]
    for s in tl.static_range(1, SOURCES):
        top = tl.maximum(top, tops[s])
    total = totals[0] * tl.exp2(tops[0] - top)
    for s in tl.static_range(1, SOURCES):
        total += totals[s] * tl.exp2(tops[s] - top)

    row = first_row + tl.arange(0, BLOCK_M)
    slab = tl.cast(split, tl.int64) * batch_heads + batch_head
    for s in tl.static_range(SOURCES):
        share = tl.exp2(tops[s] - top) / total  # [BLOCK_M]
        out_ptr = contiguous_head(out_ptrs[s], queries, slab, heads, D_VS[s])
        out = accs[s] * share[:, None]  # [BLOCK_M, BLOCK_DV]
        outs = Rows(out_ptr, queries, heads * D_VS[s])
        column = chunk * BLOCK_DVS[s]
        store_rows(outs, out, first_row, column, BLOCK_M, D_VS[s], BLOCK_DVS[s])
        if WRITE_STATISTICS and SOURCES > 1:
            weights_base = weights_ptr + (slab * queries) * SOURCES + s
            inside = (row < queries) & (chunk == 0)
            tl.store(weights_base + row * SOURCES, totals[s] * share, mask=inside)
    if WRITE_STATISTICS:
        lse = (top + tl.log2(total)) * 0.6931471805599453  # ln 2; [BLOCK_M]
        tl.store(lse_ptr + slab * queries + row, lse, mask=(row < queries) & (chunk == 0))


@triton.jit
def _join_splits(
    partial_out_ptr,
    partial_weights_ptr,
    lse_ptrs,
    stride_split,
    top,
    total,
    splits,
    batch_head,
    batch_heads,
    heads,
    queries,
    first_row,
    chunk,
    SOURCES: tl.constexpr,
    D_V: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """One source's output and weight, each split weighed by ``exp(lse_split - lse)``."""
    row = first_row + tl.arange(0, BLOCK_M)
    inside = row < queries
    column = readable_column(chunk, D_V, BLOCK_DV)
    acc = tl.zeros([BLOCK_M, BLOCK_DV], tl.float32)
    weight = tl.zeros([BLOCK_M], tl.float32)
    for split in range(splits):
        slab = batch_head + split * tl.cast(batch_heads, tl.int64)
        split_lse = tl.load(lse_ptrs + split * stride_split, mask=inside, other=0.0)
        share = tl.exp(split_lse - top) / total  # [BLOCK_M]
        partial_ptr = contiguous_head(partial_out_ptr, queries, slab, heads, D_V)
        partials = Rows(partial_ptr, queries, heads * D_V)
        # [BLOCK_M, BLOCK_DV]
        partial = load_rows(partials, first_row, column, BLOCK_M, D_V, BLOCK_DV, False)
        acc += partial * share[:, None]
        if SOURCES > 1:
            weight_ptrs = partial_weights_ptr + (slab * queries + row) * SOURCES
            weight += share * tl.load(weight_ptrs, mask=inside, other=0.0)
    return acc, weight


@triton.jit
def _combine_splits_kernel(
    partial_out_ptrs,
    partial_lse_ptr,
    partial_weights_ptr,
    out_ptrs,
    lse_ptr,
    weights_ptr,
    splits,
    queries,
    heads,
    batch_heads,
    D_VS: tl.constexpr,
    BLOCK_DVS: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Grid: (query blocks × B·H, value chunks). Joins the partial results of the splits."""
    SOURCES: tl.constexpr = len(out_ptrs)
    query_blocks = tl.cdiv(queries, BLOCK_M)
    first_row = (tl.program_id(0) % query_blocks) * BLOCK_M
    batch_head = tl.cast(tl.program_id(0) // query_blocks, tl.int64)
    chunk = tl.program_id(1)
    row = first_row + tl.arange(0, BLOCK_M)
    inside = row < queries
    write_statistics = inside & (chunk == 0)

    lse_ptrs = partial_lse_ptr + batch_head * queries + row  # [BLOCK_M]
    stride_split = tl.cast(batch_heads, tl.int64) * queries
    top = tl.full([BLOCK_M], float("-inf"), tl.float32)
    for split in range(splits):
        top = tl.maximum(top, tl.load(lse_ptrs + split * stride_split, mask=inside, other=0.0))
    total = tl.zeros([BLOCK_M], tl.float32)
    for split in range(splits):
        lse = tl.load(lse_ptrs + split * stride_split, mask=inside, other=0.0)
        total += tl.exp(lse - top)
    lse = top + tl.log(total)
    tl.store(lse_ptr + batch_head * queries + row, lse, mask=write_statistics)

    for s in tl.static_range(SOURCES):
        acc, weight = _join_splits(
            partial_out_ptrs[s],
            partial_weights_ptr + s,
            lse_ptrs,
            stride_split,
            top,
            total,
            splits,
            batch_head,
            batch_heads,
            heads,
            queries,
            first_row,
            chunk,
            SOURCES,
            D_VS[s],
            BLOCK_DVS[s],
            BLOCK_M,
        )
        out_ptr = contiguous_head(out_ptrs[s], queries, batch_head, heads, D_VS[s])
        outs = Rows(out_ptr, queries, heads * D_VS[s])
        store_rows(outs, acc, first_row, chunk * BLOCK_DVS[s], BLOCK_M, D_VS[s], BLOCK_DVS[s])
        if SOURCES > 1:
            weight_ptrs = weights_ptr + (batch_head * queries + row) * SOURCES + s
            tl.store(weight_ptrs, weight, mask=write_statistics)


def plan_attention_forward(
    target: Target,
    q: Tensor,
    ks: Sequence[Tensor],
    vs: Sequence[Tensor],
    scale: float,
    outs: Sequence[Tensor],
    lse: Tensor,
    weights: Tensor,
) -> list[Launch]:
    """Launches that fill ``outs``, ``lse`` and (for several sources) ``weights``."""
    batch, queries, heads, d_qk = q.shape
    d_vs = tuple(v.shape[3] for v in vs)
    columns = target.tiles.value_columns[bits(q)]
    chunk_limit = columns.chunk
    while sum(value_block(d, chunk_limit) for d in d_vs) > columns.accumulated:
        chunk_limit //= 2
    blocks = tuple(value_block(d, chunk_limit) for d in d_vs)
    tile = target.tiles.choose("attention_forward", bits(q), d_qk, sum(blocks), queries)
    chunks = max(ceil_div(d, block) for d, block in zip(d_vs, blocks, strict=True))
    programs = ceil_div(queries, tile.blocks["BLOCK_M"]) * batch * heads
    lengths = tuple(k.shape[1] for k in ks)
    splits, spans = split_keys(
        lengths, tile.blocks["BLOCK_N"], programs * chunks, target.multiprocessors
    )
    if splits == 1:
        part_outs, part_lse, part_weights = list(outs), lse, weights
    else:
        part_outs = [q.new_empty(splits, *out.shape, dtype=torch.float32) for out in outs]
        part_lse = lse.new_empty(splits, *lse.shape)
        part_weights = weights.new_empty(splits, *weights.shape)
    forward = Launch.of(
        _attention_forward_kernel,
        (programs, chunks, splits),
        tile,
        {
            "q_ptr": q,
            "k_ptrs": tuple(ks),
            "v_ptrs": tuple(vs),
            "out_ptrs": tuple(part_outs),
            "lse_ptr": part_lse,
            "weights_ptr": part_weights,
            "q_strides": row_strides(q),
            "k_strides": tuple(row_strides(k) for k in ks),
            "v_strides": tuple(row_strides(v) for v in vs),
            "lengths": lengths,
            "spans": spans,
            "queries": queries,
            "heads": heads,
            "batch_heads": batch * heads,
            "log2_scale": log2_scale(scale),
        },
        {
            "D_QK": d_qk,
            "D_VS": d_vs,
            "BLOCK_QK": padded(d_qk),
            "BLOCK_DVS": blocks,
            "WHOLE_BLOCKS": tuple(n % tile.blocks["BLOCK_N"] == 0 for n in lengths),
            "NEGATE_Q": scale < 0,
            "PRECISION": target.precision,
            "WRITE_STATISTICS": True,
        },
    )
    if splits == 1:
        return [forward]
    combine_tile = target.tiles.choose("combine_splits", bits(q), d_qk, max(blocks), queries)
    combine = Launch.of(
        _combine_splits_kernel,
        (ceil_div(queries, combine_tile.blocks["BLOCK_M"]) * batch * heads, chunks),
        combine_tile,
        {
            "partial_out_ptrs": tuple(part_outs),
            "partial_lse_ptr": part_lse,
            "partial_weights_ptr": part_weights,
            "out_ptrs": tuple(outs),
            "lse_ptr": lse,
            "weights_ptr": weights,
            "splits": splits,
            "queries": queries,
            "heads": heads,
            "batch_heads": batch * heads,
        },
        {"D_VS": d_vs, "BLOCK_DVS": blocks},
    )
    return [forward, combine]


def split_keys(
    lengths: Sequence[int], block_n: int, programs: int, multiprocessors: int
) -> tuple[int, tuple[int, ...]]:
    """How many splits of the keys fill the GPU, and each source's span of keys per split.

    A span is a whole number of blocks; no split is empty in the longest source. A grid that fills
    the multiprocessors on its own is not split.
    """
    block_counts = [ceil_div(n, block_n) for n in lengths]
    wanted = max(1, min(multiprocessors // programs, max(block_counts)))
    longest_span = ceil_div(max(block_counts), wanted)
    splits = ceil_div(max(block_counts), longest_span)
    return splits, tuple(ceil_div(count, splits) * block_n for count in block_counts)
