"""``bench compare``: two records, case by case, with a band that tells noise from change."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import hypot
from typing import Any, Literal

from hmc_fast.bench.record import Measurement, Record

Verdict = Literal[
    "slower", "faster", "same", "only old", "only new", "broke", "mended", "not timed"
]
REGRESSIONS: tuple[Verdict, ...] = ("slower", "broke", "only old")
LEAST_BAND = 0.05
"""Two runs of the same code differ by some per cent however steady each of them is."""


@dataclass(frozen=True)
class Comparison:
    """One measurement in both records.

    ``ratio`` is the new median over the old, and ``band`` the half-width around 1 within which the
    two samples' own spread explains it. ``note`` gives a reason where there is no ratio.
    """

    label: str
    verdict: Verdict
    old_ms: float | None = None
    new_ms: float | None = None
    ratio: float | None = None
    band: float | None = None
    note: str | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def compare(old: Record, new: Record, least_band: float = LEAST_BAND) -> list[Comparison]:
    """Every measurement of either record, in the order of the old one."""
    old_rows, new_rows = _by_key(old), _by_key(new)
    return [
        _compare_rows(old_rows.get(key), new_rows.get(key), least_band)
        for key in dict.fromkeys([*old_rows, *new_rows])
    ]


def has_regression(comparisons: Sequence[Comparison]) -> bool:
    """Whether something became slower, broke or is missing."""
    return any(comparison.verdict in REGRESSIONS for comparison in comparisons)


def differences_between(old: Record, new: Record) -> list[str]:
    """What else differs: a ratio across devices or releases is not the code's alone."""
    differences = []
    for name in ("name", "architecture"):
        before, after = old.device.get(name), new.device.get(name)
        if before != after:
            differences.append(f"device {name}: {before} and {after}")
    packages = (old.environment.get("packages", {}), new.environment.get("packages", {}))
    for package in ("torch", "triton"):
        before, after = (listed.get(package) for listed in packages)
        if before != after:
            differences.append(f"{package}: {before} and {after}")
    return differences


def noise_band(old: Measurement, new: Measurement, least: float = LEAST_BAND) -> float:
    """Half of each p20 to p80 width over its median, added in quadrature; at least ``least``."""
    return max(least, hypot(_spread(old), _spread(new)))


def _spread(row: Measurement) -> float:
    if row.p20_ms is None or row.p80_ms is None or not row.p50_ms:
        return 0.0
    return (row.p80_ms - row.p20_ms) / 2 / row.p50_ms


def _median(row: Measurement | None) -> float | None:
    return None if row is None else row.p50_ms


def _by_key(record: Record) -> dict[Any, Measurement]:
    return {row.key: row for row in record.measurements}


def _compare_rows(
    old: Measurement | None, new: Measurement | None, least_band: float
) -> Comparison:
    if old is None or new is None:
        row = old or new
        assert row is not None
        # A row without a figure is no loss where it is missing.
        verdict: Verdict = "only new" if old is None else "only old"
        if row.p50_ms is None:
            verdict = "not timed"
        note = f"only in the {'new' if old is None else 'old'} record ({row.status})"
        return Comparison(row.label, verdict, _median(old), _median(new), note=note)
    if old.p50_ms is None or new.p50_ms is None:
        verdict = "not timed"
        if old.p50_ms is not None:
            verdict = "not timed" if new.status == "skipped" else "broke"
        elif new.p50_ms is not None:
            verdict = "mended"
        note = f"{old.status}, now {new.status}" + (f": {new.reason}" if new.reason else "")
        return Comparison(new.label, verdict, old.p50_ms, new.p50_ms, note=note)
    ratio, band = new.p50_ms / old.p50_ms, noise_band(old, new, least_band)
    verdict = "slower" if ratio > 1 + band else "faster" if ratio < 1 / (1 + band) else "same"
    return Comparison(new.label, verdict, old.p50_ms, new.p50_ms, ratio, band)
