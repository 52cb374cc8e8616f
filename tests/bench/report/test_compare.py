"""Verdicts of ``bench compare`` on runs with a planted slowdown, from quiet to hopeless."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hmc_fast.bench.measuring.clock import Timing
from hmc_fast.bench.record import Measurement, Record, read_record, write_record
from hmc_fast.bench.report.compare import Comparison, compare, is_too_noisy, needed_repeats
from hmc_fast.bench.run import with_times
from hmc_fast.cli.app import run

SEEDS = range(25)
SAMPLES = 160
NOISES = (0.01, 0.1, 0.5, 3.0)
"""Standard deviations of the logarithm of a sample."""


def timed(record: Record, factor: float, noise: float, seed: int, drift: float = 0.0) -> Record:
    """A run of one row with a median of 4 ms times ``factor``; ``drift`` shifts the whole run."""
    draws = np.random.default_rng(seed).normal(drift, noise, SAMPLES)
    timing = Timing(tuple(float(ms) for ms in 4 * factor * np.exp(draws)))
    row = Measurement("hsa_c3@1024x8", "triton", "bf16", "forward", "stream", "ok")
    return replace(record, measurements=[with_times(row, timing, {})])


def compared(record: Record, factor: float, noise: float, seed: int, least: float) -> Comparison:
    old = timed(record, 1.0, noise, 2 * seed)
    new = timed(record, factor, noise, 2 * seed + 1)
    return compare(old, new, least)[0]


@pytest.mark.parametrize("noise", NOISES)
@pytest.mark.parametrize(("factor", "least"), [(1.05, 0.02), (1.2, 0.05), (5.0, 0.05)])
def test_a_planted_slowdown_is_seen_or_called_too_noisy(
    record: Record, factor: float, least: float, noise: float
) -> None:
    verdicts = {compared(record, factor, noise, seed, least).verdict for seed in SEEDS}
    assert verdicts <= {"slower", "too noisy to judge"}
    if noise == NOISES[0] or (factor == 5.0 and noise <= 0.5):
        assert verdicts == {"slower"}


@pytest.mark.parametrize("noise", NOISES)
def test_nothing_planted_is_hardly_ever_a_change(record: Record, noise: float) -> None:
    verdicts = [compared(record, 1.0, noise, seed, 0.05).verdict for seed in SEEDS]
    assert sum(verdict in ("slower", "faster") for verdict in verdicts) <= 1
    if noise == NOISES[0]:
        assert set(verdicts) == {"same"}
    if noise >= 0.5:
        assert "same" not in verdicts


def test_4_6_times_slower_inside_a_wide_spread_is_not_the_same(record: Record) -> None:
    row = timed(record, 1.0, 0.01, 0).measurements[0]
    wide = replace(row, p20_ms=0.1, p50_ms=4.0, p80_ms=50.0, repeats_ms=None)
    slow = replace(wide, p50_ms=18.4)
    (comparison,) = compare(
        replace(record, measurements=[wide]), replace(record, measurements=[slow])
    )
    assert comparison.band is not None
    assert comparison.band > 5
    assert comparison.verdict == "too noisy to judge"


def test_a_row_without_a_spread_cannot_be_judged(record: Record) -> None:
    row = replace(timed(record, 1.0, 0.01, 0).measurements[0], p20_ms=None, repeats_ms=None)
    bare = replace(record, measurements=[row])
    assert compare(bare, bare)[0].verdict == "too noisy to judge"


def test_pairs_of_runs_cancel_what_slows_both(record: Record) -> None:
    drifts = np.random.default_rng(0).normal(0, 1, 8)

    def pairs(factor: float) -> list[tuple[Record, Record]]:
        return [
            (
                timed(record, 1.0, 0.01, 2 * i, float(drift)),
                timed(record, factor, 0.01, 2 * i + 1, float(drift)),
            )
            for i, drift in enumerate(drifts)
        ]

    for factor, verdict in ((1.0, "same"), (1.2, "slower"), (5.0, "slower")):
        first, *further = pairs(factor)
        (comparison,) = compare(*first, further=further)
        assert comparison.verdict == verdict
        assert comparison.ratio == pytest.approx(factor, rel=0.01)
        assert comparison.repeats == len(drifts)
    first, *further = pairs(1.0)
    crossed = [(before, further[i - 1][1]) for i, (before, _) in enumerate(further)]
    assert is_too_noisy(compare(*first, further=crossed))


def test_a_pair_in_which_a_row_broke_decides(record: Record) -> None:
    good = timed(record, 1.0, 0.01, 0)
    rows = [replace(good.measurements[0], status="error", reason="lost", p50_ms=None)]
    broken = replace(good, measurements=rows)
    assert compare(good, good, further=[(good, broken)])[0].verdict == "broke"
    late = replace(rows[0], status="skipped")
    skipped = replace(good, measurements=[late])
    pairs = [(good, broken), (good, good)]
    assert compare(good, skipped, further=pairs)[0].verdict == "broke"
    nothing = replace(good, measurements=[])
    assert compare(good, good, further=[(nothing, nothing)])[0].verdict == "same"


def test_the_needed_repeats_are_enough_and_no_more(record: Record) -> None:
    comparison = compared(record, 1.0, 0.5, 0, 0.05)
    assert comparison.repeats == 8
    assert comparison.band is not None
    assert comparison.needed == needed_repeats(comparison.band, 8, 0.05)
    assert comparison.needed > 8
    assert needed_repeats(0.05, 8, 0.05) == 8
    assert needed_repeats(0.05, 8, 0.01) > needed_repeats(0.05, 8, 0.02) > 8


def test_noise_has_an_exit_code_and_tells_the_repeats(
    record: Record, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    old, new = tmp_path / "old.jsonl", tmp_path / "new.jsonl"
    write_record(old, timed(record, 1.0, 0.5, 0))
    write_record(new, timed(record, 1.0, 0.5, 1))
    assert read_record(old).measurements[0].repeats_ms is not None
    assert run(["bench", "compare", str(old), str(new)]) == 4
    text = capsys.readouterr().out
    assert "least effect 5 %" in text
    assert "no regression" not in text
    assert run(["bench", "compare", str(old), str(new), "--json"]) == 4
    told = json.loads(capsys.readouterr().out)
    assert (told["too_noisy"], told["regression"]) == (True, False)
    assert told["comparisons"][0]["needed"] > told["comparisons"][0]["repeats"]
    write_record(new, timed(record, 20.0, 0.5, 1))
    assert run(["bench", "compare", str(old), str(new)]) == 3
    write_record(old, timed(record, 1.0, 0.01, 0))
    write_record(new, timed(record, 1.0, 0.01, 1))
    both = [str(old), str(new)]
    assert run(["bench", "compare", *both, *both, *both]) == 0
    assert run(["bench", "compare", *both, str(old)]) == 1
