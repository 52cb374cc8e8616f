"""One kernel launch as data: it can be run, or compiled ahead of time without a GPU."""

from dataclasses import dataclass
from typing import Any


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

    @property
    def tile(self) -> str:
        """Block sizes, warps, stages and the limit of registers, for tables."""
        names = ("BLOCK_M", "BLOCK_N", "BLOCK_K")
        sizes = "×".join(str(self.constants[name]) for name in names if name in self.constants)
        limit = f", {self.max_registers} registers" if self.max_registers else ""
        return f"{sizes}, {self.num_warps} warps, {self.num_stages} stages{limit}"

    def run(self) -> None:
        """Queue the kernel on the current stream of the current device."""
        self.kernel[self.grid](
            **self.arguments,
            **self.constants,
            num_warps=self.num_warps,
            num_stages=self.num_stages,
            maxnreg=self.max_registers,
            enable_fp_fusion=True,
        )
