"""``hmc-fast gpu-check`` from end to end, on a list of small steps that need no GPU."""

import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from hmc_fast.bench.gpu import launch, steps
from hmc_fast.bench.gpu.runner import Step
from hmc_fast.cli.app import run
from hmc_fast.cli.gpu_check import INCOMPLETE


@pytest.fixture
def listed(monkeypatch: pytest.MonkeyPatch) -> list[Step]:
    """The list that the command runs; a GPU is said to be there."""
    listed: list[Step] = []
    monkeypatch.setattr(launch, "why_no_device", lambda: None)
    monkeypatch.setattr(steps, "identity", lambda: ({"GPU": "none"}, "sm_90"))
    monkeypatch.setattr(steps, "all_steps", lambda folder, architecture, tests: listed)
    return listed


def step(name: str, code: str, part: str = "parity") -> Step:
    command = (sys.executable, "-S", "-c", code)
    return Step(name, part, f"{name} is so", (command,), 30, least_s=0.5, needs_gpu=False)


def test_the_exit_code_and_the_page_say_what_is_proven(
    listed: list[Step], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = str(tmp_path / "out")
    listed += [step("one", "pass"), step("long", "import time; time.sleep(30)", "targets")]
    assert run(["gpu-check", "--out", out, "--minutes", "0.1", "--part", "parity"]) == 0
    assert "Of 1 steps: 1 proven." in capsys.readouterr().out
    assert run(["gpu-check", "--out", out, "--minutes", "0.1"]) == INCOMPLETE
    assert "Of 2 steps: 1 proven, 1 not reached." in capsys.readouterr().out
    listed[1] = step("long", "import sys; sys.exit('it is wrong')", "targets")
    assert run(["gpu-check", "--out", out, "--json"]) == 1
    printed = capsys.readouterr()
    states = {r["name"]: r["state"] for r in json.loads(printed.out)["results"]}
    assert states == {"one": "passed", "long": "failed"}
    line = printed.err.strip().splitlines()[-1]
    assert line == "hmc-fast: gpu-check: 1 of 2 steps failed; the first: long: it is wrong"
    page = (tmp_path / "out" / "report.html").read_text()
    assert "one is so" in page
    assert "it is wrong" in page
    listed[1] = step("long", "pass", "targets")
    assert run(["gpu-check", "--out", out]) == 1  # what failed stands
    assert run(["gpu-check", "--out", out, "--retry"]) == 0
    capsys.readouterr()
    assert run(["gpu-check", "--out", out, "--part", "parity"]) == 0
    assert "Of 2 steps: 2 proven." in capsys.readouterr().out  # of all parts


def test_bad_input_is_one_line(
    listed: list[Step], fails: Callable[..., str], tmp_path: Path
) -> None:
    assert "unknown part 'speed'" in fails("gpu-check", "--part", "speed")
    blocked = tmp_path / "file"
    blocked.touch()
    assert "cannot be used as a folder" in fails("gpu-check", "--out", blocked / "x")
