"""One kernel launch as data: it can be run, or compiled ahead of time without a GPU.

Beside it what every plan needs: what a launch is planned for, and small arithmetic.
"""

from contextvars import copy_context
from dataclasses import dataclass
from math import log2
from typing import Any

import torch
import triton
from torch import Tensor

from hmc_fast.kernels.fused.tiles import Tile, TileTable

LOG2_E = log2(2.718281828459045)
SMALLEST_SCALE = 1e-30
"""Stands for a scale of zero, which would turn the masked scores' −∞ into NaN."""


@dataclass(frozen=True)
class Launch:
    """A kernel with everything that decides its code and its grid.

    ``arguments`` are the run-time parameters by name (tensors, numbers, tuples of them), in the
    kernel's order; ``constants`` its ``tl.constexpr`` parameters.
    """

    kernel: Any
    grid: tuple[int, ...]
    arguments: dict[str, Any]
    constants: dict[str, Any]
    num_warps: int
    num_stages: int
    max_registers: int | None = None
    scratch: bool = False
    """Whether the kernel makes tensor descriptors, for which Triton wants memory of its caller."""

    @classmethod
    def of(
        cls,
        kernel: Any,
        grid: tuple[int, ...],
        tile: Tile,
        arguments: dict[str, Any],
        constants: dict[str, Any],
        *,
        scratch: bool = False,
    ) -> "Launch":
        """A launch with the block sizes, warps, stages and registers of ``tile``."""
        constants = {**constants, **tile.blocks}
        options = (tile.num_warps, tile.num_stages, tile.max_registers)
        return cls(kernel, grid, arguments, constants, *options, scratch)

    @property
    def name(self) -> str:
        """The kernel's name without its affixes, such as ``attention_forward``."""
        name: str = self.kernel.fn.__name__
        return name.strip("_").removesuffix("_kernel")

    @property
    def tile(self) -> str:
        """Block sizes, warps, stages and the limit of registers, for tables."""
        names = ("BLOCK_M", "BLOCK_N", "BLOCK_K")
        sizes = "×".join(str(self.constants[name]) for name in names if name in self.constants)
        limit = f", {self.max_registers} registers" if self.max_registers else ""
        return f"{sizes}, {self.num_warps} warps, {self.num_stages} stages{limit}"

    def run(self) -> None:
        """Queue the kernel on the current stream of the current device."""
        if self.scratch:
            # Triton's allocator belongs to the context, which autograd's threads do not share; in
            # a copy of the context the caller keeps its own.
            copy_context().run(self._run_with_scratch)
        else:
            self._run()

    def _run_with_scratch(self) -> None:
        triton.set_allocator(_allocate)
        self._run()

    def _run(self) -> None:
        self.kernel[self.grid](
            **self.arguments,
            **self.constants,
            num_warps=self.num_warps,
            num_stages=self.num_stages,
            maxnreg=self.max_registers,
            enable_fp_fusion=True,
        )


@dataclass(frozen=True)
class Target:
    """What the launches are planned for."""

    tiles: TileTable
    multiprocessors: int
    precision: str
    """``input_precision`` of fp32 products: ``"ieee"`` or ``"tf32"``."""

    @property
    def architecture(self) -> str:
        """``"sm_90"`` and the like, or ``"interpreter"``."""
        return self.tiles.architecture


def _allocate(size: int, alignment: int, stream: int | None) -> Tensor:
    """Memory of the current device, freed in the order of its stream; aligned to 512 bytes."""
    device = "cuda" if torch.cuda.is_available() else "cpu"
    return torch.empty(size, dtype=torch.int8, device=device)


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
