"""The error budget of one tensor."""

from dataclasses import dataclass

import torch
from torch import Tensor

EAGER_ERROR_FACTOR = 2.0
ROUNDING_UNITS = 4.0
"""Factor on the rounding term, which is itself counted in units of the dtype's epsilon."""


@dataclass(frozen=True)
class BudgetUse:
    """Errors against fp64 of one tensor, and what the budget allowed."""

    name: str
    max_error: float
    max_allowed: float
    mean_error: float
    mean_allowed: float
    finite: bool

    @property
    def within(self) -> bool:
        return (
            self.finite
            and self.max_error <= self.max_allowed
            and self.mean_error <= self.mean_allowed
        )

    def __str__(self) -> str:
        state = "finite" if self.finite else "NOT FINITE"
        return (
            f"{self.name}: max error {self.max_error:.3e} (allowed {self.max_allowed:.3e}), "
            f"mean error {self.mean_error:.3e} (allowed {self.mean_allowed:.3e}), {state}"
        )


def budget_use(
    name: str, actual: Tensor, eager: Tensor, truth: Tensor, rounding: Tensor | None = None
) -> BudgetUse:
    """Compare ``actual`` with ``truth`` (fp64), given what eager PyTorch reaches (``eager``).

    ``rounding`` (fp64, shape of ``truth``) is the unavoidable error of each element beside that of
    storing it in its dtype.
    """
    error = (actual.double() - truth).abs()
    eager_error = (eager.double() - truth).abs()
    unavoidable = torch.finfo(actual.dtype).eps * truth.abs()
    if rounding is not None:
        unavoidable = unavoidable + rounding
    return BudgetUse(
        name=name,
        max_error=error.max().item(),
        max_allowed=EAGER_ERROR_FACTOR * eager_error.max().item()
        + ROUNDING_UNITS * unavoidable.max().item(),
        mean_error=error.mean().item(),
        mean_allowed=EAGER_ERROR_FACTOR * eager_error.mean().item()
        + ROUNDING_UNITS * unavoidable.mean().item(),
        finite=bool(actual.isfinite().all()),
    )
