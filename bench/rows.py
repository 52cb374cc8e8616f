"""From timings to rows, the same for operators and models."""

from collections.abc import Sequence
from dataclasses import replace

from hmc_fast.bench.kernel_parity import budget_units
from hmc_fast.bench.measure import Timing
from hmc_fast.bench.profile_record import Measurement
from hmc_fast.bench.timing import outliers
from hmc_fast.kernels.testing import BudgetUse


def with_times(row: Measurement, timing: Timing, clocks: dict[str, float]) -> Measurement:
    """``row`` with the percentiles of ``timing``."""
    return replace(
        row,
        samples=len(timing.samples_ms),
        p20_ms=timing.percentile(20),
        p50_ms=timing.percentile(50),
        p80_ms=timing.percentile(80),
        min_ms=min(timing.samples_ms),
        max_ms=max(timing.samples_ms),
        outliers=outliers(timing),
        clocks=clocks,
    )


def with_parity(row: Measurement, use: BudgetUse) -> Measurement:
    """``row`` with its error in units of the budget; it fails where that is above 1."""
    units = budget_units(use)
    finite_units = units if units < float("inf") else None
    row = replace(row, budget_units=finite_units, budget_tensor=use.name)
    return row if use.within else replace(row, status="parity failed", reason=str(use))


def with_speed_ups(rows: Sequence[Measurement]) -> list[Measurement]:
    """Each row with the fastest other peer's median over its own, among rows of the same pass.

    The faster of a peer's launches counts, so that nobody is compared with a slow way of itself.
    """
    filled = []
    for row in rows:
        others = [
            other.p50_ms
            for other in rows
            if other.p50_ms is not None
            and other.peer != row.peer
            and (other.case, other.precision, other.what) == (row.case, row.precision, row.what)
        ]
        if row.p50_ms is not None and others:
            row = replace(row, speed_up=min(others) / row.p50_ms)
        filled.append(row)
    return filled
