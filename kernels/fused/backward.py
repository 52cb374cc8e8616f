"""Backward kernels: recomputed probabilities, no atomics, each gradient written by one program.

With ``P = exp(S - lse)``, ``dP_s = dout_s v_sᵀ`` and ``δ = Σ_s (dout_s·out_s + dw_s·w_s) - dlse``,
every score receives ``dS_s = P_s · (dP_s + dw_s - δ)``. The first launch writes ``lse`` and
``dw_s - δ`` for the others. Queries and keys are walked twice, once for
``dq`` and once for ``dk`` and ``dv``: what that costs in arithmetic it saves in memory and in
atomics, and two runs give the same bits (Dao 2023, FlashAttention-2, deterministic backward).
"""

from collections.abc import Sequence

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

ROW_BLOCK = tl.constexpr(128)
"""Rows of statistics are padded to a multiple of it, so that no kernel has to mask them."""


@triton.jit
def _delta_kernel(
    out_ptrs,
    d_out_ptrs,
    lse_ptr,
    weights_ptr,
    d_weights_ptr,
    d_lse_ptr,
    statistics_ptrs,
    d_out_strides,
    queries,
    heads,
    D_VS: tl.constexpr,
    BLOCK_DVS: tl.constexpr,
    BLOCK_M: tl.constexpr,
):
    """Grid: (padded query blocks × B·H). Writes what :func:`row_statistics` describes."""
    SOURCES: tl.constexpr = len(out_ptrs)
    query_blocks = padded_rows(queries) // BLOCK_M
    first_row = (tl.program_id(0) % query_blocks) * BLOCK_M
    batch_head = tl.cast(tl.program_id(0) // query_blocks, tl.int64)
    row = first_row + tl.arange(0, BLOCK_M)
    inside = row < queries
    rows = batch_head * queries + row
    padded = batch_head * padded_rows(queries) + row
    lse = tl.load(lse_ptr + rows, mask=inside, other=float("inf"))
    tl.store(statistics_ptrs[0] + padded, lse * 1.4426950408889634)  # log2 e
    delta = -tl.load(d_lse_ptr + rows, mask=inside, other=0.0)  # [BLOCK_M]
    for s in tl.static_range(SOURCES):
        out_ptr = contiguous_head(out_ptrs[s], queries, batch_head, heads, D_VS[s])
        d_outs = head_rows(d_out_ptrs[s], d_out_strides[s], queries, batch_head, heads)
        for column in range(0, D_VS[s], BLOCK_DVS[s]):
            outs = Rows(out_ptr, queries, heads * D_VS[s])
            # both [BLOCK_M, BLOCK_DV]
            out = load_rows(outs, first_row, column, BLOCK_M, D_VS[s], BLOCK_DVS[s], False)
            d_out = load_rows(d_outs, first_row, column, BLOCK_M, D_VS[s], BLOCK_DVS[s], False)
            delta += tl.sum(out.to(tl.float32) * d_out.to(tl.float32), 1)
        if SOURCES > 1:
            weight = tl.load(weights_ptr + rows * SOURCES + s, mask=inside, other=0.0)
            d_weight = tl.load(d_weights_ptr + rows * SOURCES + s, mask=inside, other=0.0)
            delta += weight * d_weight
    for s in tl.static_range(SOURCES):
        shift = -delta
        if SOURCES > 1:
            shift += tl.load(d_weights_ptr + rows * SOURCES + s, mask=inside, other=0.0)
        tl.store(statistics_ptrs[1 + s] + padded, shift)


@triton.jit
def padded_rows(queries):
    """Rows of one head's statistics."""
    return tl.cdiv(queries, ROW_BLOCK) * ROW_BLOCK


@triton.jit
def row_statistics(statistics_ptrs, queries, batch_head, first_row, s, BLOCK_M: tl.constexpr):
    """``lse`` in log2 units and ``dw_s - δ`` of a block of rows, each ``[B, H, padded rows]``.

    In rows beyond the last query ``lse`` is +∞, which makes probabilities zero.
    """
    rows = batch_head * padded_rows(queries) + first_row + tl.arange(0, BLOCK_M)
    return tl.load(statistics_ptrs[0] + rows), tl.load(statistics_ptrs[1 + s] + rows)


@triton.jit
def _add_further_chunks(
    d_p,
    left,
    right,
    first_left,
    first_right,
    D_V: tl.constexpr,
    ROWS_LEFT: tl.constexpr,
    ROWS_RIGHT: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    PRECISION: tl.constexpr,
):
    """``d_p`` plus the products of all columns of ``left`` and ``right`` beyond the first chunk."""
    if D_V > BLOCK_DV:
        for column in range(BLOCK_DV, D_V, BLOCK_DV):
            # [ROWS_LEFT, BLOCK_DV] and [ROWS_RIGHT, BLOCK_DV]
            a = load_rows(left, first_left, column, ROWS_LEFT, D_V, BLOCK_DV, False)
            b = load_rows(right, first_right, column, ROWS_RIGHT, D_V, BLOCK_DV, False)
            d_p = tl.dot(a, tl.trans(b), d_p, input_precision=PRECISION)
    return d_p


@triton.jit
def _attention_backward_q_kernel(
    q_ptr,
    k_ptrs,
    v_ptrs,
    d_out_ptrs,
    statistics_ptrs,
    dq_ptr,
    q_strides,
    k_strides,
    v_strides,
    d_out_strides,
    lengths,
    queries,
    heads,
    log2_scale,
    scale,
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
    """Grid: (query blocks × B·H). Walks the keys of every source and writes ``dq``."""
    SOURCES: tl.constexpr = len(k_ptrs)
    query_blocks = tl.cdiv(queries, BLOCK_M)
    first_row = (tl.program_id(0) % query_blocks) * BLOCK_M
    batch_head = tl.cast(tl.program_id(0) // query_blocks, tl.int64)

    q_rows = head_rows(q_ptr, q_strides, queries, batch_head, heads)
    q = load_rows(q_rows, first_row, 0, BLOCK_M, D_QK, BLOCK_QK, False)  # [BLOCK_M, BLOCK_QK]
    if NEGATE_Q:
        q = -q
    dq = tl.zeros([BLOCK_M, BLOCK_QK], tl.float32)
    for s in tl.static_range(SOURCES):
        length = lengths[s]
        log2_lse, shift = row_statistics(
            statistics_ptrs, queries, batch_head, first_row, s, BLOCK_M
        )
        keys = head_rows(k_ptrs[s], k_strides[s], length, batch_head, heads)
        values = head_rows(v_ptrs[s], v_strides[s], length, batch_head, heads)
        d_outs = head_rows(d_out_ptrs[s], d_out_strides[s], queries, batch_head, heads)
        # [BLOCK_M, BLOCK_DV]
        d_out = load_rows(d_outs, first_row, 0, BLOCK_M, D_VS[s], BLOCK_DVS[s], False)
        for start in tl.range(0, length, BLOCK_N):
            # [BLOCK_N, BLOCK_QK] and [BLOCK_N, BLOCK_DV]
            k = load_rows(keys, start, 0, BLOCK_N, D_QK, BLOCK_QK, WHOLE_BLOCKS[s])
            v = load_rows(values, start, 0, BLOCK_N, D_VS[s], BLOCK_DVS[s], WHOLE_BLOCKS[s])
            scores = tl.dot(q, tl.trans(k), input_precision=PRECISION)  # [BLOCK_M, BLOCK_N]
            p = tl.exp2(scores * log2_scale - log2_lse[:, None])  # [BLOCK_M, BLOCK_N]
            if not WHOLE_BLOCKS[s]:
                inside = (start + tl.arange(0, BLOCK_N))[None, :] < length
                p = tl.where(inside, p, 0.0)
            d_p = tl.dot(d_out, tl.trans(v), input_precision=PRECISION)  # [BLOCK_M, BLOCK_N]
            d_p = _add_further_chunks(
                d_p,
                d_outs,
                values,
                first_row,
                start,
                D_VS[s],
                BLOCK_M,
                BLOCK_N,
                BLOCK_DVS[s],
                PRECISION,
            )
            d_scores = p * (d_p + shift[:, None])  # [BLOCK_M, BLOCK_N]
            dq = tl.dot(d_scores.to(k.dtype), k, dq, input_precision=PRECISION)

    dq_head = contiguous_head(dq_ptr, queries, batch_head, heads, D_QK)
    dq = dq * scale
    store_rows(Rows(dq_head, queries, heads * D_QK), dq, first_row, 0, BLOCK_M, D_QK, BLOCK_QK)


@triton.jit
def _backward_one_key_block(
    queries,
    keys,
    values,
    d_outs,
    dk_ptr,
    dv_ptr,
    statistics_ptrs,
    first_key,
    chunk,
    batch_head,
    heads,
    log2_scale,
    scale,
    s,
    D_QK: tl.constexpr,
    D_V: tl.constexpr,
    BLOCK_QK: tl.constexpr,
    BLOCK_DV: tl.constexpr,
    WHOLE_QUERIES: tl.constexpr,
    NEGATE_Q: tl.constexpr,
    WRITE_DK: tl.constexpr,
    WRITE_DV: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """``dk`` of one block of keys, and one chunk of columns of its ``dv``, over all queries."""
    k = load_rows(keys, first_key, 0, BLOCK_N, D_QK, BLOCK_QK, False)  # [BLOCK_N, BLOCK_QK]
    if NEGATE_Q:
        k = -k
    column = readable_column(chunk, D_V, BLOCK_DV)
    if WRITE_DK:
        v = load_rows(values, first_key, 0, BLOCK_N, D_V, BLOCK_DV, False)  # [BLOCK_N, BLOCK_DV]
        dk = tl.zeros([BLOCK_N, BLOCK_QK], tl.float32)
    if WRITE_DV:
        dv = tl.zeros([BLOCK_N, BLOCK_DV], tl.float32)
    for start in tl.range(0, queries.count, BLOCK_M):
        log2_lse, shift = row_statistics(
            statistics_ptrs, queries.count, batch_head, start, s, BLOCK_M
        )
        # [BLOCK_M, BLOCK_QK] and [BLOCK_M, BLOCK_DV]
        q = load_rows(queries, start, 0, BLOCK_M, D_QK, BLOCK_QK, WHOLE_QUERIES)
        d_out = load_rows(d_outs, start, column, BLOCK_M, D_V, BLOCK_DV, WHOLE_QUERIES)
        scores = tl.dot(k, tl.trans(q), input_precision=PRECISION)  # [BLOCK_N, BLOCK_M]
        p = tl.exp2(scores * log2_scale - log2_lse[None, :])  # [BLOCK_N, BLOCK_M]
        if WRITE_DV:
            dv = tl.dot(p.to(d_out.dtype), d_out, dv, input_precision=PRECISION)
        if WRITE_DK:
            d_p = tl.dot(v, tl.trans(d_out), input_precision=PRECISION)  # [BLOCK_N, BLOCK_M]
            d_p = _add_further_chunks(
                d_p, values, d_outs, first_key, start, D_V, BLOCK_N, BLOCK_M, BLOCK_DV, PRECISION
            )
            d_scores = p * (d_p + shift[None, :])  # [BLOCK_N, BLOCK_M]
            dk = tl.dot(d_scores.to(q.dtype), q, dk, input_precision=PRECISION)
    if WRITE_DK:
        dk = dk * scale
        store_rows(
            Rows(dk_ptr, keys.count, heads * D_QK), dk, first_key, 0, BLOCK_N, D_QK, BLOCK_QK
        )
    if WRITE_DV:
        dvs = Rows(dv_ptr, keys.count, heads * D_V)
        store_rows(dvs, dv, first_key, chunk * BLOCK_DV, BLOCK_N, D_V, BLOCK_DV)


@triton.jit
def _attention_backward_kv_kernel(
    q_ptr,
    k_ptrs,
    v_ptrs,
    d_out_ptrs,
    statistics_ptrs,
    dk_ptrs,
    dv_ptrs,
    q_strides,
    k_strides,
    v_strides,
    d_out_strides,
    lengths,
    queries,
    heads,
    log2_scale,
    scale,
    D_QK: tl.constexpr,
    D_VS: tl.constexpr,
    BLOCK_QK: tl.constexpr,
    BLOCK_DVS: tl.constexpr,
    WHOLE_QUERIES: tl.constexpr,
    NEGATE_Q: tl.constexpr,
    WRITE_DK: tl.constexpr,
    WRITE_DV: tl.constexpr,
    PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Grid: (key blocks of all sources × B·H, value chunks). One launch for every source."""
    SOURCES: tl.constexpr = len(k_ptrs)
    key_blocks = tl.cdiv(lengths[0], BLOCK_N)
    for s in tl.static_range(1, SOURCES):
        key_blocks += tl.cdiv(lengths[s], BLOCK_N)
    block = tl.program_id(0) % key_blocks
    batch_head = tl.cast(tl.program_id(0) // key_blocks, tl.int64)
    chunk = tl.program_id(1)
    q_rows = head_rows(q_ptr, q_strides, queries, batch_head, heads)
    for s in tl.static_range(SOURCES):
        n = lengths[s]
        source_blocks = tl.cdiv(n, BLOCK_N)
        if (block >= 0) & (block < source_blocks):
            _backward_one_key_block(
                q_rows,
                head_rows(k_ptrs[s], k_strides[s], n, batch_head, heads),
                head_rows(v_ptrs[s], v_strides[s], n, batch_head, heads),
                head_rows(d_out_ptrs[s], d_out_strides[s], queries, batch_head, heads),
                contiguous_head(dk_ptrs[s], n, batch_head, heads, D_QK),
                contiguous_head(dv_ptrs[s], n, batch_head, heads, D_VS[s]),
                statistics_ptrs,
                block * BLOCK_N,
                chunk,
                batch_head,
                heads,
                log2_scale,
                scale,
                s,
                D_QK,
                D_VS[s],
                BLOCK_QK,
                BLOCK_DVS[s],
                WHOLE_QUERIES,
                NEGATE_Q,
                WRITE_DK,
                WRITE_DV,
                PRECISION,
                BLOCK_M,
                BLOCK_N,
            )
        block -= source_blocks


def plan_attention_backward(
    target: Target,
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
    dq: Tensor,
    dks: Sequence[Tensor],
    dvs: Sequence[Tensor],
) -> list[Launch]:
    """Launches that fill ``dq``, ``dks`` and ``dvs`` (all contiguous)."""
    batch, queries, heads, d_qk = q.shape
    d_vs = tuple(v.shape[3] for v in vs)
    blocks = tuple(value_block(d, target.tiles.value_columns[bits(q)].chunk) for d in d_vs)
    lengths = tuple(k.shape[1] for k in ks)
    rows = ceil_div(queries, ROW_BLOCK.value) * ROW_BLOCK.value
    statistics = tuple(lse.new_empty(batch, heads, rows) for _ in range(1 + len(vs)))
    problem = (bits(q), d_qk, max(blocks), queries)
    delta_tile = target.tiles.choose("delta", *problem)
    q_tile = target.tiles.choose("attention_backward_q", *problem)
    kv_tile = target.tiles.choose("attention_backward_kv", *problem)
    value_blocks = {"D_VS": d_vs, "BLOCK_DVS": blocks}
    shared_arguments = {
        "q_ptr": q,
        "k_ptrs": tuple(ks),
        "v_ptrs": tuple(vs),
        "d_out_ptrs": tuple(d_outs),
        "statistics_ptrs": statistics,
    }
    shapes = {
        "q_strides": row_strides(q),
        "k_strides": tuple(row_strides(k) for k in ks),
        "v_strides": tuple(row_strides(v) for v in vs),
        "d_out_strides": tuple(row_strides(d_out) for d_out in d_outs),
        "lengths": lengths,
        "queries": queries,
        "heads": heads,
        "log2_scale": log2_scale(scale),
        "scale": float(scale),
    }
    shared_constants = {
        "D_QK": d_qk,
        **value_blocks,
        "BLOCK_QK": padded(d_qk),
        "NEGATE_Q": scale < 0,
        "PRECISION": target.precision,
    }
    delta_launch = Launch.of(
        _delta_kernel,
        (rows // delta_tile.blocks["BLOCK_M"] * batch * heads,),
        delta_tile,
        {
            "out_ptrs": tuple(outs),
            "d_out_ptrs": tuple(d_outs),
            "lse_ptr": lse,
            "weights_ptr": weights,
            "d_weights_ptr": d_weights,
            "d_lse_ptr": d_lse,
            "statistics_ptrs": statistics,
            "d_out_strides": shapes["d_out_strides"],
            "queries": queries,
            "heads": heads,
        },
        value_blocks,
    )
    q_launch = Launch.of(
        _attention_backward_q_kernel,
        (ceil_div(queries, q_tile.blocks["BLOCK_M"]) * batch * heads,),
        q_tile,
        {**shared_arguments, "dq_ptr": dq, **shapes},
        {
            **shared_constants,
            "WHOLE_BLOCKS": tuple(n % q_tile.blocks["BLOCK_N"] == 0 for n in lengths),
        },
    )
    chunks = max(ceil_div(d, block) for d, block in zip(d_vs, blocks, strict=True))
    if chunks == 1:
        outputs = [(kv_tile, 1, True, True)]
    else:
        # dk needs whole value rows, which take a loop and a tile of its own; dv a chunk of them.
        k_tile = target.tiles.choose("attention_backward_k", *problem)
        outputs = [(k_tile, 1, True, False), (kv_tile, chunks, False, True)]
    kv_launches = [
        Launch.of(
            _attention_backward_kv_kernel,
            (sum(ceil_div(n, tile.blocks["BLOCK_N"]) for n in lengths) * batch * heads, columns),
            tile,
            {**shared_arguments, "dk_ptrs": tuple(dks), "dv_ptrs": tuple(dvs), **shapes},
            {
                **shared_constants,
                "WHOLE_QUERIES": queries % tile.blocks["BLOCK_M"] == 0,
                "WRITE_DK": write_dk,
                "WRITE_DV": write_dv,
            },
        )
        for tile, columns, write_dk, write_dv in outputs
    ]
    return [delta_launch, q_launch, *kv_launches]
