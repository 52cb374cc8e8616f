"""``bench compare``: two records, case by case, with a band that tells noise from change.

The band is the half-width of a t interval of the logarithm of new over old. From one pair of
records it comes from each row's repeats, in which all peers of a run took turns. Records of old
and new code taken in turn are compared pair by pair, so that what slows both cancels. A band wider
than the least effect could hide that effect: "same" is then not a verdict that can be given.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from math import ceil, exp, expm1, hypot, log, log1p, sqrt
from typing import Any, Literal

import numpy as np
from scipy.stats import norm, t

from hmc_fast.bench.record import Measurement, Record

Verdict = Literal[
    "slower",
    "faster",
    "same",
    "too noisy to judge",
    "only old",
    "only new",
    "broke",
    "mended",
    "not timed",
]
REGRESSIONS: tuple[Verdict, ...] = ("slower", "broke", "only old")
LEAST_BAND = 0.05
"""Two runs of the same code differ by some per cent however steady each of them is."""
CONFIDENCE = 0.99
"""Of a band. A record has about a hundred rows, so 95 % would raise false alarms."""


@dataclass(frozen=True)
class Comparison:
    """One measurement in both records.

    ``ratio`` is the new median over the old, and ``band`` the half-width around 1 within which
    noise or the least effect explains it, None where the records tell no spread. ``repeats`` is
    how many each side has, or how many pairs of runs there are; ``needed`` is how many of them
    would bring the noise below the least effect. ``note`` gives a reason where one is due.
    """

    label: str
    verdict: Verdict
    old_ms: float | None = None
    new_ms: float | None = None
    ratio: float | None = None
    band: float | None = None
    repeats: int | None = None
    needed: int | None = None
    note: str | None = None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def compare(
    old: Record,
    new: Record,
    least_band: float = LEAST_BAND,
    further: Sequence[tuple[Record, Record]] = (),
) -> list[Comparison]:
    """Every measurement of any record, in the order of the old one.

    ``further`` are more runs of the old and the new code, taken in turn.
    """
    pairs = [(_by_key(before), _by_key(after)) for before, after in [(old, new), *further]]
    keys = dict.fromkeys(key for pair in pairs for rows in pair for key in rows)
    return [
        _compare_pairs([(before.get(key), after.get(key)) for before, after in pairs], least_band)
        for key in keys
    ]


def has_regression(comparisons: Sequence[Comparison]) -> bool:
    """Whether something became slower, broke or is missing."""
    return any(comparison.verdict in REGRESSIONS for comparison in comparisons)


def is_too_noisy(comparisons: Sequence[Comparison]) -> bool:
    """Whether noise could hide a change of the least effect in some row."""
    return any(comparison.verdict == "too noisy to judge" for comparison in comparisons)


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


def noise_band(old: Measurement, new: Measurement, least: float = LEAST_BAND) -> float | None:
    """The rows' half-widths added in quadrature, at least ``least``; None without a spread."""
    noise = _noise_of_rows(old, new)
    return None if noise is None else max(least, noise)


def needed_repeats(noise: float, repeats: int, least: float) -> int:
    """How many repeats bring a half-width of ``noise``, seen in ``repeats`` of them, to ``least``.

    Both are relative and above 0; ``repeats`` is 2 at least.
    """
    deviation = log1p(noise) / _quantile(repeats) * sqrt(repeats)
    least = log1p(least)
    count = max(2, ceil((float(norm.ppf((1 + CONFIDENCE) / 2)) * deviation / least) ** 2))
    while _quantile(count) * deviation / sqrt(count) > least:
        count += 1
    return count


def _quantile(repeats: int) -> float:
    return float(t.ppf((1 + CONFIDENCE) / 2, repeats - 1))


def _half_width(logarithms: Sequence[float]) -> float:
    """Relative half-width of the interval of their mean."""
    error = float(np.std(logarithms, ddof=1)) / sqrt(len(logarithms))
    return expm1(_quantile(len(logarithms)) * error)


def _noise_of_rows(old: Measurement, new: Measurement) -> float | None:
    widths = [_noise(row) for row in (old, new)]
    known = [width for width in widths if width is not None]
    return hypot(*known) if len(known) == len(widths) else None


def _noise(row: Measurement) -> float | None:
    """Relative half-width of a row's median; half of p20 to p80 in records without repeats."""
    if row.repeats_ms is not None and len(row.repeats_ms) > 1:
        return _half_width([log(repeat) for repeat in row.repeats_ms])
    if row.p20_ms is None or row.p80_ms is None or not row.p50_ms:
        return None
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
    repeats = min(len(row.repeats_ms or ()) for row in (old, new))
    comparison = Comparison(new.label, "same", old.p50_ms, new.p50_ms)
    return _judged(
        comparison,
        log(new.p50_ms / old.p50_ms),
        _noise_of_rows(old, new),
        repeats if repeats > 1 else None,
        least_band,
    )


def _compare_pairs(
    pairs: Sequence[tuple[Measurement | None, Measurement | None]], least_band: float
) -> Comparison:
    """A pair that misses a time decides, a regression first; else all pairs do, together."""
    pairs = [pair for pair in pairs if pair != (None, None)]
    singles = [_compare_rows(old, new, least_band) for old, new in pairs]
    logarithms = [log(single.ratio) for single in singles if single.ratio is not None]
    if len(logarithms) < len(pairs):
        untimed = [single for single in singles if single.ratio is None]
        return next((single for single in untimed if single.verdict in REGRESSIONS), untimed[0])
    if len(pairs) == 1:
        return singles[0]
    comparison = replace(
        singles[0],
        old_ms=float(np.median([old.p50_ms for old, _ in pairs if old is not None])),
        new_ms=float(np.median([new.p50_ms for _, new in pairs if new is not None])),
        note=None,
    )
    noise = _half_width(logarithms)
    return _judged(comparison, float(np.mean(logarithms)), noise, len(pairs), least_band)


def _judged(
    comparison: Comparison,
    effect: float,
    noise: float | None,
    repeats: int | None,
    least_band: float,
) -> Comparison:
    """``comparison`` with a verdict on ``effect``, the logarithm of new over old."""
    ratio = exp(effect)
    if noise is None:
        note = "the record tells no spread"
        return replace(comparison, verdict="too noisy to judge", ratio=ratio, note=note)
    band = max(least_band, noise)
    verdict: Verdict = "same" if noise <= least_band else "too noisy to judge"
    if abs(effect) > log1p(band):
        verdict = "slower" if effect > 0 else "faster"
    needed = None
    if repeats is not None and noise > 0 and least_band > 0:
        needed = needed_repeats(noise, repeats, least_band)
    return replace(
        comparison, verdict=verdict, ratio=ratio, band=band, repeats=repeats, needed=needed
    )
