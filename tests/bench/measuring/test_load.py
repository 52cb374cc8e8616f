"""Other processes and stolen time are told from the work that is timed."""

import os
import subprocess
import sys
import time

from hmc_fast.bench.measuring.load import CpuTimes, cpu_times, heavier, load_between, load_marks


def test_the_shares_are_of_all_cores() -> None:
    cores = os.cpu_count() or 1
    before = CpuTimes(wall=10.0, busy=100.0, stolen=5.0, ours=50.0)
    after = CpuTimes(
        wall=12.0, busy=100 + 1.5 * cores, stolen=5 + 0.1 * cores, ours=50 + 0.5 * cores
    )
    load = load_between(before, after)
    assert round(load["others_percent"], 6) == 50
    assert round(load["steal_percent"], 6) == 5
    assert load_marks(load) == ["other processes 50 %", "steal 5 %"]
    assert load_marks({**load, "attempts": 3})[-1] == "quietest of 3"


def test_a_quiet_or_short_time_has_no_mark() -> None:
    before = CpuTimes(wall=0.0, busy=0.0, stolen=0.0, ours=0.0)
    assert load_between(before, CpuTimes(0.01, 5.0, 5.0, 0.0)) == {}
    quiet = load_between(before, CpuTimes(2.0, 2.0, 0.0, 2.0))
    assert load_marks(quiet) == load_marks(None) == []


def test_children_that_live_are_counted_as_ours() -> None:
    spin = "import time\nend = time.perf_counter() + 1.5\nwhile time.perf_counter() < end: pass"
    before = cpu_times()
    with subprocess.Popen([sys.executable, "-c", spin]) as child:
        time.sleep(1)
        spent = cpu_times().ours - before.ours
        child.kill()
    assert spent > 0.1


def test_a_row_of_two_timings_has_the_larger_load() -> None:
    assert heavier({"others_percent": 1.0, "steal_percent": 4.0}, {"others_percent": 30.0}) == {
        "others_percent": 30.0,
        "steal_percent": 4.0,
    }
    assert heavier(None, {}) == {}
