"""What warp-specialised kernels share: tiles by the tensor memory accelerator, and their limits.

Tensor descriptors ask for rows and bases at multiples of 16 bytes, and for scratch memory from
Triton's allocator (:attr:`Launch.scratch`). Whatever does not fit goes to the pointer kernels.
"""

import triton
import triton.language as tl
from torch import Tensor

from hmc_fast.kernels.fused.launch import Target, bits, padded, row_strides
from hmc_fast.kernels.fused.primitives import head_rows
from hmc_fast.kernels.fused.tiles import Tile

ALIGNMENT = 16
"""Bytes of an address, and of a step between rows (PTX ISA, tensor maps)."""


@triton.jit
def head_tiles(
    ptr, strides, count, batch_head, heads, BLOCK_ROWS: tl.constexpr, WIDTH: tl.constexpr
):
    """Tiles ``[BLOCK_ROWS, WIDTH]`` of one batch and head of ``[B, count, H, WIDTH]``.

    Rows beyond the last are zero. ``strides`` of batch, row and head.
    """
    rows = head_rows(ptr, strides, count, batch_head, heads)
    return tl.make_tensor_descriptor(
        rows.ptr, [rows.count, WIDTH], [rows.stride, 1], [BLOCK_ROWS, WIDTH]
    )


def find_tile(target: Target, kernel: str, q: Tensor, v: Tensor, *others: Tensor) -> Tile | None:
    """The tile of a specialised kernel for tensors ``[B, N, H, D]``; None where it cannot serve.

    It serves head dims that are powers of two for which ``target`` has a tile, in tensors that
    descriptors can address.
    """
    d_qk, d_v = q.shape[3], v.shape[3]
    if padded(d_qk) != d_qk or padded(d_v) != d_v or not all(map(describable, (q, v, *others))):
        return None
    return target.tiles.find(kernel, bits(q), d_qk, d_v, q.shape[1])


def describable(x: Tensor) -> bool:
    """Whether each head of ``x [B, N, H, D]`` is a matrix that a descriptor can address.

    Its rows may not overlap, as those of a broadcast view do.
    """
    steps = (x.data_ptr(), *(stride * x.element_size() for stride in row_strides(x)))
    aligned = all(step % ALIGNMENT == 0 for step in steps)
    return aligned and x.stride(3) == 1 and x.stride(1) >= x.shape[3]
