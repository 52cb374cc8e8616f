"""From tensors to launches: block sizes, splits and grids. Works on meta tensors as well."""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log2, prod
from typing import Any

import torch
from torch import Tensor

from hmc_fast.kernels.fused.backward import (
    _attention_backward_kv_kernel,
    _attention_backward_q_kernel,
    _delta_kernel,
)
from hmc_fast.kernels.fused.forward import _attention_forward_kernel, _combine_splits_kernel
from hmc_fast.kernels.fused.launch import Launch
from hmc_fast.kernels.fused.projection import ROW_BLOCKS_PER_GROUP, _gated_projection_kernel
from hmc_fast.kernels.fused.tiles import Tile, TileTable

LOG2_E = log2(2.718281828459045)
SMALLEST_SCALE = 1e-30
"""Stands for a scale of zero, which would turn the masked scores' −∞ into NaN."""


@dataclass(frozen=True)
class Target:
    """What the launches are planned for."""

    tiles: TileTable
    multiprocessors: int
    precision: str
    """``input_precision`` of fp32 products: ``"ieee"`` or ``"tf32"``."""


def plan_forward(
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
    forward = _launch(
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
    combine = _launch(
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


def plan_backward(
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
    delta = torch.empty_like(lse)
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
        "lse_ptr": lse,
        "delta_ptr": delta,
        "d_weights_ptr": d_weights,
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
    delta_launch = _launch(
        _delta_kernel,
        (ceil_div(queries, delta_tile.blocks["BLOCK_M"]) * batch * heads,),
        delta_tile,
        {
            "out_ptrs": tuple(outs),
            "d_out_ptrs": tuple(d_outs),
            "weights_ptr": weights,
            "d_weights_ptr": d_weights,
            "d_lse_ptr": d_lse,
            "delta_ptr": delta,
            "d_out_strides": shapes["d_out_strides"],
            "queries": queries,
            "heads": heads,
        },
        value_blocks,
    )
    q_launch = _launch(
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
        _launch(
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


def plan_gated_projection(
    target: Target,
    x: Tensor,
    attended: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor,
    gamma: Tensor,
    y: Tensor,
) -> Launch:
    """The launch that fills ``y``; ``x``, ``attended`` and ``weight`` are contiguous."""
    channels = x.shape[-1]
    rows = prod(x.shape[:-1])
    widths = tuple(a.shape[-1] for a in attended)
    tile = target.tiles.choose("gated_projection", bits(weight), 0, 0, rows)
    row_blocks = ceil_div(rows, tile.blocks["BLOCK_M"])
    return _launch(
        _gated_projection_kernel,
        (row_blocks * ceil_div(channels, tile.blocks["BLOCK_N"]),),
        tile,
        {
            "x_ptr": x,
            "attended_ptrs": tuple(attended),
            "weight_ptr": weight,
            "bias_ptr": bias,
            "gamma_ptr": gamma,
            "y_ptr": y,
            "rows": rows,
        },
        {
            "CHANNELS": channels,
            "WIDTHS": widths,
            "INNER": sum(widths),
            "WHOLE_ROWS": rows % tile.blocks["BLOCK_M"] == 0,
            "PRECISION": target.precision,
            "GROUP": ROW_BLOCKS_PER_GROUP,
        },
    )


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


def value_block(d_v: int, limit: int) -> int:
    """Columns of one value chunk: a power of two, at most ``limit``."""
    return min(padded(d_v), limit)


def padded(width: int) -> int:
    """The next power of two, at least 16, which ``tl.dot`` needs."""
    return int(max(16, 1 << (width - 1).bit_length()))


def ceil_div(a: int, b: int) -> int:
    return -(-a // b)


def bits(x: Tensor) -> int:
    return x.dtype.itemsize * 8


def row_strides(x: Tensor) -> tuple[int, int, int]:
    """Strides of batch, token and head of ``[B, N, H, D]``."""
    return x.stride(0), x.stride(1), x.stride(2)


def log2_scale(scale: float) -> float:
    """``|scale| · log2 e``; a negative scale negates one factor instead (``NEGATE_Q``)."""
    return max(abs(float(scale)), SMALLEST_SCALE) * LOG2_E


def _launch(
    kernel: Any,
    grid: tuple[int, ...],
    tile: Tile,
    arguments: dict[str, Any],
    constants: dict[str, Any],
) -> Launch:
    return Launch(
        kernel,
        grid,
        arguments,
        {**constants, **tile.blocks},
        tile.num_warps,
        tile.num_stages,
        tile.max_registers,
    )
