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

    def run(self) -> None:
        """Queue the kernel on the current stream of the current device."""
        self.kernel[self.grid](
            **self.arguments,
            **self.constants,
            num_warps=self.num_warps,
            num_stages=self.num_stages,
            enable_fp_fusion=True,
        )
