"""The steps of gpu-check as real processes: passing, failing, hanging, dying, killed, continued."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from hmc_fast import UserError
from hmc_fast.bench.gpu.launch import NO_DEVICE, why_no_device
from hmc_fast.bench.gpu.page import conclusion, write_page
from hmc_fast.bench.gpu.runner import (
    LOGS,
    MAX_ATTEMPTS,
    RECORD_FILE,
    CheckRecord,
    Step,
    run_steps,
)

MADE_ON: dict[str, str | None] = {"GPU": "none", "revision": "abc"}
TOUCH = (
    "import pathlib, sys; p = pathlib.Path(sys.argv[1]); "
    "p.write_text('x' + (p.read_text() if p.exists() else ''))"
)


def step(name: str, code: str, *arguments: object, limit_s: float = 60.0) -> Step:
    command = (sys.executable, "-S", "-c", code, *map(str, arguments))
    return Step(
        name, "parity", f"{name} is shown", (command,), limit_s, least_s=0.5, needs_gpu=False
    )


def check(folder: Path, *steps: Step, minutes: float = 1.0, retry: bool = False) -> CheckRecord:
    return run_steps(steps, folder, minutes=minutes, made_on=MADE_ON, environment={}, retry=retry)


def states(record: CheckRecord) -> dict[str, str]:
    return {result.name: result.state for result in record.results}


def reason(record: CheckRecord, name: str) -> str:
    return next(r.reason or "" for r in record.results if r.name == name)


def test_what_fails_hangs_or_dies_is_told_and_the_rest_goes_on(tmp_path: Path) -> None:
    raises = "print('before'); import sys; sys.exit('hmc-fast: it was wrong by 3')"
    dies = (
        "import os, signal; print('up to here', flush=True); os.kill(os.getpid(), signal.SIGSEGV)"
    )
    record = check(
        tmp_path,
        step("first", "print('ok')"),
        step("raises", raises),
        step("hangs", "import time; print('waiting', flush=True); time.sleep(60)", limit_s=1.0),
        step("dies", dies),
        replace(step("fails on purpose", "raise SystemExit(9)"), exit_code=9),
        replace(step("does not fail on purpose", "pass"), exit_code=9),
        replace(step("cannot", "pass"), why_not="no program for it"),
        replace(step("leaves nothing", "pass"), judge=lambda: "a row is missing"),
        replace(step("no program", "pass"), commands=(("no-such-program-here",),)),
        step("last", "print('ok')"),
    )
    assert states(record) == {
        "first": "passed",
        "raises": "failed",
        "hangs": "failed",
        "dies": "failed",
        "fails on purpose": "passed",
        "does not fail on purpose": "failed",
        "cannot": "unavailable",
        "leaves nothing": "failed",
        "no program": "failed",
        "last": "passed",
    }
    assert reason(record, "raises") == "hmc-fast: it was wrong by 3"
    assert reason(record, "hangs").startswith("not finished after 1 s")
    assert reason(record, "hangs").endswith("waiting")
    assert reason(record, "dies") == "killed by SIGSEGV; last line: up to here"
    assert "exit code 0, where 9 was to come" in reason(record, "does not fail on purpose")
    assert reason(record, "leaves nothing") == "a row is missing"
    assert "no-such-program-here: cannot be run" in reason(record, "no program")
    assert (tmp_path / LOGS / "raises.log").read_text().startswith("before\n")
    markdown, html = write_page(record, tmp_path)
    page = markdown.read_text()
    assert conclusion(record) == "Of 10 steps: 3 proven, 6 failed, 1 cannot run here."
    for text in (conclusion(record), "killed by SIGSEGV", "no program for it", "last is shown"):
        assert text in page
        assert text in html.read_text()
    assert "Nothing was timed" in page


def test_a_stopped_step_leaves_no_process_of_its_own(tmp_path: Path) -> None:
    stubborn = "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); time.sleep(60)"
    nested = (
        "import subprocess, sys; "
        f"child = subprocess.Popen([sys.executable, '-S', '-c', '{stubborn}']); "
        "open(sys.argv[1], 'w').write(str(child.pid)); child.wait()"
    )
    record = check(tmp_path, step("nests", nested, tmp_path / "pid", limit_s=2.0))
    assert states(record) == {"nests": "failed"}
    wait_for(lambda: not alive(int((tmp_path / "pid").read_text())))


def test_time_that_runs_out_cuts_a_step_and_the_next_run_goes_on(tmp_path: Path) -> None:
    done = tmp_path / "done"
    steps = [
        step("counts", TOUCH, done),
        step("long", "import time, sys; time.sleep(float(sys.argv[1]))", 30),
        step("after", "pass"),
    ]
    record = check(tmp_path / "out", *steps, minutes=2.5 / 60)
    assert states(record) == {"counts": "passed", "long": "cut"}
    assert record.not_reached == ["long", "after"]
    page = write_page(record, tmp_path / "out")[0].read_text()
    assert "the time was over" in page.split("## Not reached")[1]
    steps[1] = step("long", "pass")
    record = check(tmp_path / "out", *steps)
    assert set(states(record).values()) == {"passed"}
    assert done.read_text() == "x"  # what passed is not run again
    assert [r.attempts for r in record.results] == [1, 2, 1]


def test_what_failed_stands_until_it_is_to_be_run_again(tmp_path: Path) -> None:
    done = tmp_path / "done"
    fails = step("fails", TOUCH + "; sys.exit(len(p.read_text()) < 2)", done)
    assert states(check(tmp_path / "out", fails)) == {"fails": "failed"}
    assert states(check(tmp_path / "out", fails)) == {"fails": "failed"}
    assert done.read_text() == "x"
    assert states(check(tmp_path / "out", fails, retry=True)) == {"fails": "passed"}


def test_steps_that_share_the_gpu_run_side_by_side_and_timed_ones_alone(tmp_path: Path) -> None:
    """Each waits until its neighbour is there too, which it never is for one that runs alone."""
    meets = (
        "import pathlib, sys, time; here = pathlib.Path(sys.argv[1]); here.touch(); "
        "other = pathlib.Path(sys.argv[2]); end = time.monotonic() + float(sys.argv[3])\n"
        "while not other.exists() and time.monotonic() < end: time.sleep(0.01)\n"
        "sys.exit(not other.exists())"
    )
    a, b = tmp_path / "a", tmp_path / "b"
    shared = [step("a", meets, a, b, 20), step("b", meets, b, a, 20)]
    shared = [replace(each, alone=False) for each in shared]
    assert set(states(check(tmp_path / "1", *shared)).values()) == {"passed"}
    c, d = tmp_path / "c", tmp_path / "d"
    alone = [step("c", meets, c, d, 1), step("d", meets, d, c, 1)]
    assert states(check(tmp_path / "2", *alone)) == {"c": "failed", "d": "passed"}


def test_a_record_of_something_else_is_refused(tmp_path: Path) -> None:
    check(tmp_path, step("a", "pass"))
    with pytest.raises(UserError, match="was made with revision abc.*name another folder"):
        run_steps([], tmp_path, minutes=1, made_on={**MADE_ON, "revision": "def"}, environment={})
    (tmp_path / RECORD_FILE).write_text('{"format": 1, "names": []}')
    with pytest.raises(UserError, match="damaged or of another release"):
        check(tmp_path, step("a", "pass"))


@pytest.mark.skipif(why_no_device() is None, reason="is about machines without a GPU")
def test_a_step_that_needs_a_gpu_says_in_one_line_that_there_is_none(tmp_path: Path) -> None:
    record = check(tmp_path, replace(step("needs one", "print('ran')"), needs_gpu=True))
    assert states(record) == {"needs one": "failed"}
    assert reason(record, "needs one").startswith(f"{NO_DEVICE}: ")
    assert len((tmp_path / LOGS / "needs-one.log").read_text().splitlines()) == 1


KILLED = """
import sys
from pathlib import Path
from hmc_fast.bench.gpu.runner import Step, run_steps
touch = (sys.executable, "-S", "-c", {touch!r}, sys.argv[2])
sleep = (sys.executable, "-S", "-c",
         "import os, sys, time; open(sys.argv[1], 'w').write(str(os.getpid())); time.sleep(60)",
         sys.argv[3])
steps = [Step(name, "parity", "", (command,), 50, needs_gpu=False)
         for name, command in (("counts", touch), ("killed", sleep), ("after", touch))]
run_steps(steps, Path(sys.argv[1]), minutes=1, made_on={made_on!r}, environment={{}})
"""


def alive(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def wait_for(condition: Callable[[], bool], seconds: float = 30.0) -> None:
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def kill_while_running(tmp_path: Path, number: signal.Signals) -> int:
    """Start the three steps and end the check during the second; its exit code."""
    pid = tmp_path / "pid"
    pid.unlink(missing_ok=True)
    code = KILLED.format(touch=TOUCH, made_on=MADE_ON)
    command = [sys.executable, "-c", code, tmp_path / "out", tmp_path / "done", pid]
    with subprocess.Popen(command, stderr=subprocess.DEVNULL) as process:
        wait_for(lambda: pid.exists() and bool(pid.read_text()))
        os.kill(process.pid, number)
        exit_code = process.wait(20)
    wait_for(lambda: not alive(int(pid.read_text())))  # the step went with it
    return exit_code


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT], ids=lambda n: n.name)
def test_a_killed_run_leaves_a_whole_record_and_is_continued(
    tmp_path: Path, number: signal.Signals
) -> None:
    assert kill_while_running(tmp_path, number) == -number
    written = json.loads((tmp_path / "out" / RECORD_FILE).read_text())
    expected = "running" if number == signal.SIGKILL else "cut"
    assert [r["state"] for r in written["results"]] == ["passed", expected]
    done = tmp_path / "done"
    steps = [step(name, TOUCH, done) for name in ("counts", "killed", "after")]
    record = check(tmp_path / "out", *steps)
    assert set(states(record).values()) == {"passed"}
    assert done.read_text() == "xxx"  # once before the kill, twice after it


def test_a_step_that_ends_the_check_again_and_again_is_given_up(tmp_path: Path) -> None:
    for _ in range(MAX_ATTEMPTS):
        kill_while_running(tmp_path, signal.SIGKILL)
    steps = [step(name, TOUCH, tmp_path / "done") for name in ("counts", "killed", "after")]
    record = check(tmp_path / "out", *steps)
    assert states(record) == {"counts": "passed", "killed": "failed", "after": "passed"}
    assert "killed 3 times while this ran" in reason(record, "killed")
