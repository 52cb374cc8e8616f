"""Gated output projection ``Y = X + γ ⊙ (O Wᵀ + b)`` in one kernel.

A library GEMM would write ``O Wᵀ + b`` and read it back with ``X`` to gate and add it: three more
passes over a feature map. Here the gate and the sum are the epilogue, and the attention outputs of
several sources are segments of one inner dimension, so they are never concatenated. The projection
to queries and keys has no such epilogue: it stays a library GEMM with a bias.
"""

from collections.abc import Sequence
from math import prod

import triton
import triton.language as tl
from torch import Tensor

from hmc_fast.kernels.fused.launch import Launch, Target, bits, ceil_div
from hmc_fast.kernels.fused.primitives import Rows, load_rows, store_rows

ROW_BLOCKS_PER_GROUP = 8
"""Row blocks that walk the channel blocks together, so that they share weights in the L2 cache."""


@triton.jit
def _gated_projection_kernel(
    x_ptr,
    attended_ptrs,
    weight_ptr,
    bias_ptr,
    gamma_ptr,
    y_ptr,
    rows,
    CHANNELS: tl.constexpr,
    WIDTHS: tl.constexpr,
    INNER: tl.constexpr,
    WHOLE_ROWS: tl.constexpr,
    PRECISION: tl.constexpr,
    GROUP: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    BLOCK_K: tl.constexpr,
):
    """Grid: row blocks × channel blocks, in groups of ``GROUP`` row blocks."""
    row_blocks = tl.cdiv(rows, BLOCK_M)
    CHANNEL_BLOCKS: tl.constexpr = (CHANNELS + BLOCK_N - 1) // BLOCK_N
    group = tl.program_id(0) // (GROUP * CHANNEL_BLOCKS)
    within = tl.program_id(0) % (GROUP * CHANNEL_BLOCKS)
    group_size = tl.minimum(row_blocks - group * GROUP, GROUP)
    first_row = (group * GROUP + within % group_size) * BLOCK_M
    first_channel = (within // group_size) * BLOCK_N

    WHOLE_CHANNELS: tl.constexpr = CHANNELS % BLOCK_N == 0
    acc = tl.zeros([BLOCK_M, BLOCK_N], tl.float32)
    source_weight_ptr = weight_ptr
    for s in tl.static_range(len(WIDTHS)):
        inputs = Rows(attended_ptrs[s], rows, WIDTHS[s])
        weights = Rows(source_weight_ptr, CHANNELS, INNER)
        for column in tl.range(0, WIDTHS[s], BLOCK_K):
            # [BLOCK_M, BLOCK_K] and [BLOCK_N, BLOCK_K]
            attended = load_rows(inputs, first_row, column, BLOCK_M, WIDTHS[s], BLOCK_K, WHOLE_ROWS)
            weight = load_rows(
                weights, first_channel, column, BLOCK_N, WIDTHS[s], BLOCK_K, WHOLE_CHANNELS
            )
            acc = tl.dot(attended, tl.trans(weight), acc, input_precision=PRECISION)
        source_weight_ptr += WIDTHS[s]

    channel = first_channel + tl.arange(0, BLOCK_N)
    bias = tl.load(bias_ptr + channel, mask=channel < CHANNELS, other=0.0).to(tl.float32)
    gamma = tl.load(gamma_ptr + channel, mask=channel < CHANNELS, other=0.0).to(tl.float32)
    # [BLOCK_M, BLOCK_N]
    x = load_rows(
        Rows(x_ptr, rows, CHANNELS), first_row, first_channel, BLOCK_M, CHANNELS, BLOCK_N, False
    )
    y = x.to(tl.float32) + gamma[None, :] * (acc + bias[None, :])  # [BLOCK_M, BLOCK_N]
    y_rows = Rows(y_ptr, rows, CHANNELS)
    store_rows(y_rows, y, first_row, first_channel, BLOCK_M, CHANNELS, BLOCK_N)


def plan_gated_projection(
    target: Target,
    x: Tensor,
    attended: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor,
    gamma: Tensor,
    y: Tensor,
) -> list[Launch]:
    """The launch that fills ``y``; ``x``, ``attended`` and ``weight`` are contiguous."""
    channels = x.shape[-1]
    rows = prod(x.shape[:-1])
    widths = tuple(a.shape[-1] for a in attended)
    tile = target.tiles.choose("gated_projection", bits(weight), 0, 0, rows)
    row_blocks = ceil_div(rows, tile.blocks["BLOCK_M"])
    launch = Launch.of(
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
    return [launch]
