"""Small Triton functions that the kernels share.

Scores are kept in units of ``log2``: with ``c = scale · log2 e``, ``softmax(scale · s)`` is
``exp2(c·s - max(c·s))`` normalised, and ``exp2`` is one instruction.
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl


class Rows(NamedTuple):
    """``count`` rows of contiguous columns: the first element, and the elements between rows."""

    ptr: Any
    count: Any
    stride: Any


@triton.jit
def head_rows(ptr, strides, count, batch_head, heads):
    """One batch and head of ``[B, count, H, D]``; ``strides`` of batch, row and head."""
    offset = _head_offset(batch_head, heads, strides[0], strides[2])
    return Rows(ptr + offset, count, strides[1])


@triton.jit
def contiguous_head(ptr, count, batch_head, heads, WIDTH: tl.constexpr):
    """First element of one batch and head of a contiguous ``[B, count, H, WIDTH]``."""
    stride_batch = tl.cast(count, tl.int64) * heads * WIDTH
    return ptr + _head_offset(batch_head, heads, stride_batch, WIDTH)


@triton.jit
def _head_offset(batch_head, heads, stride_batch, stride_head):
    """In 64 bits."""
    batch = tl.cast(batch_head // heads, tl.int64)
    return batch * stride_batch + tl.cast(batch_head % heads, tl.int64) * stride_head


@triton.jit
def load_rows(
    rows,
    first_row,
    column,
    BLOCK_ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    WHOLE_ROWS: tl.constexpr,
):
    """A tile ``[BLOCK_ROWS, BLOCK_WIDTH]`` of ``rows`` of ``WIDTH`` columns, zero outside.

    ``WHOLE_ROWS`` promises that every row of the tile is inside.
    """
    row = tl.arange(0, BLOCK_ROWS)
    columns = column + tl.arange(0, BLOCK_WIDTH)
    tile_ptr = rows.ptr + tl.cast(first_row, tl.int64) * rows.stride
    tile_ptrs = tile_ptr + row[:, None] * rows.stride + columns[None, :]
    WHOLE_COLUMNS: tl.constexpr = WIDTH % BLOCK_WIDTH == 0
    if WHOLE_ROWS and WHOLE_COLUMNS:
        tile = tl.load(tile_ptrs)
    elif WHOLE_ROWS:
        tile = tl.load(tile_ptrs, mask=columns[None, :] < WIDTH, other=0.0)
    elif WHOLE_COLUMNS:
        tile = tl.load(tile_ptrs, mask=(first_row + row)[:, None] < rows.count, other=0.0)
    else:
        inside = ((first_row + row)[:, None] < rows.count) & (columns[None, :] < WIDTH)
        tile = tl.load(tile_ptrs, mask=inside, other=0.0)
    return tile


@triton.jit
def store_rows(
    rows,
    tile,
    first_row,
    column,
    BLOCK_ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
):
    """Write ``tile [BLOCK_ROWS, BLOCK_WIDTH]`` where it lies inside ``rows`` and ``WIDTH``."""
    row = tl.arange(0, BLOCK_ROWS)
    columns = column + tl.arange(0, BLOCK_WIDTH)
    tile_ptr = rows.ptr + tl.cast(first_row, tl.int64) * rows.stride
    tile_ptrs = tile_ptr + row[:, None] * rows.stride + columns[None, :]
    inside = ((first_row + row)[:, None] < rows.count) & (columns[None, :] < WIDTH)
    tl.store(tile_ptrs, tile.to(rows.ptr.dtype.element_ty), mask=inside)


@triton.jit
def readable_column(chunk, WIDTH: tl.constexpr, BLOCK_WIDTH: tl.constexpr):
    """First column of a chunk; the last chunk's for one beyond the end, whose stores are masked.

    Sources of one launch differ in width, so some programs have a chunk that a source lacks.
    """
    LAST: tl.constexpr = (WIDTH - 1) // BLOCK_WIDTH
    return tl.minimum(chunk, LAST) * BLOCK_WIDTH
