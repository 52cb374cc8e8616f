"""Small Triton functions that the attention kernels share.

Scores are kept in units of ``log2``: with ``c = scale · log2 e``, ``softmax(scale · s)`` is
``exp2(c·s - max(c·s))`` normalised, and ``exp2`` is one instruction.
"""

import triton
import triton.language as tl


@triton.jit
def load_rows(
    base_ptr,
    first_row,
    rows,
    stride_row,
    column,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
    WHOLE_ROWS: tl.constexpr,
):
    """Tile ``[ROWS, BLOCK_WIDTH]`` from row ``first_row`` and ``column`` on, zero outside."""
    row = tl.arange(0, ROWS)
    columns = column + tl.arange(0, BLOCK_WIDTH)
    tile_ptr = base_ptr + tl.cast(first_row, tl.int64) * stride_row
    tile_ptrs = tile_ptr + row[:, None] * stride_row + columns[None, :]
    WHOLE_COLUMNS: tl.constexpr = WIDTH % BLOCK_WIDTH == 0
    if WHOLE_ROWS and WHOLE_COLUMNS:
        tile = tl.load(tile_ptrs)
    elif WHOLE_ROWS:
        tile = tl.load(tile_ptrs, mask=columns[None, :] < WIDTH, other=0.0)
    elif WHOLE_COLUMNS:
        tile = tl.load(tile_ptrs, mask=(first_row + row)[:, None] < rows, other=0.0)
    else:
        inside = ((first_row + row)[:, None] < rows) & (columns[None, :] < WIDTH)
        tile = tl.load(tile_ptrs, mask=inside, other=0.0)
    return tile


@triton.jit
def store_rows(
    base_ptr,
    tile,
    first_row,
    rows,
    stride_row,
    column,
    ROWS: tl.constexpr,
    WIDTH: tl.constexpr,
    BLOCK_WIDTH: tl.constexpr,
):
    """Write ``tile [ROWS, BLOCK_WIDTH]`` where it lies inside ``rows × WIDTH``."""
    row = tl.arange(0, ROWS)
    columns = column + tl.arange(0, BLOCK_WIDTH)
    tile_ptr = base_ptr + tl.cast(first_row, tl.int64) * stride_row
    tile_ptrs = tile_ptr + row[:, None] * stride_row + columns[None, :]
    inside = ((first_row + row)[:, None] < rows) & (columns[None, :] < WIDTH)
    tl.store(tile_ptrs, tile.to(base_ptr.dtype.element_ty), mask=inside)


@triton.jit
def batch_head_offset(batch_head, heads, stride_batch, stride_head):
    """Elements from the start of a tensor to one batch and head, in 64 bits."""
    batch = tl.cast(batch_head // heads, tl.int64)
    return batch * stride_batch + tl.cast(batch_head % heads, tl.int64) * stride_head


@triton.jit
def readable_column(chunk, WIDTH: tl.constexpr, BLOCK_WIDTH: tl.constexpr):
    """First column of a chunk; the last chunk's for one beyond the end, whose stores are masked.

    Sources of one launch differ in width, so some programs have a chunk that a source lacks.
    """
    LAST: tl.constexpr = (WIDTH - 1) // BLOCK_WIDTH
    return tl.minimum(chunk, LAST) * BLOCK_WIDTH
