"""What gpu-check would run: no step starts without a GPU, and judges are strict."""

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path

import pytest

from hmc_fast.bench.gpu.launch import NO_DEVICE, why_no_device
from hmc_fast.bench.gpu.page import write_page
from hmc_fast.bench.gpu.passes import PROBLEMS
from hmc_fast.bench.gpu.runner import CheckRecord, Step, StepResult, run_steps
from hmc_fast.bench.gpu.steps import (
    PARTS,
    all_steps,
    broken_rows,
    gpu_tests,
    no_report,
    no_stray_write,
    of_parts,
    skipped_tests,
    wrong_rows,
)
from hmc_fast.bench.jobs.targets import OURS, TARGET_CASES, TARGET_MODEL_CASES
from hmc_fast.bench.measuring.traces import KERNEL_FILTERS
from hmc_fast.bench.record import RECORD_FILE, Measurement, Record, read_record, write_record
from hmc_fast.cli import gpu_check
from hmc_fast.cli.app import run
from hmc_fast.kernels.building import gate
from hmc_fast.kernels.building.builds import plan_passes
from hmc_fast.kernels.fused.launch import Target
from hmc_fast.kernels.fused.tiles import load_tiles

ATTENTION_KERNELS = {
    "forward": {
        "_attention_forward_kernel",
        "_combine_splits_kernel",
        "_specialised_forward_kernel",
    },
    "backward": {
        "_delta_kernel",
        "_attention_backward_q_kernel",
        "_attention_backward_kv_kernel",
        "_specialised_backward_kv_kernel",
    },
}
TESTS = Path(__file__).parents[2]
WITHOUT_GPU = pytest.mark.skipif(why_no_device() is None, reason="is about machines without a GPU")


def test_the_parts_are_in_the_order_that_is_told() -> None:
    steps = all_steps(Path("out"), None, TESTS)
    assert tuple(dict.fromkeys(step.part for step in steps)) == PARTS == gpu_check.PARTS
    assert len({step.name for step in steps}) == len({step.log for step in steps}) == len(steps)
    timed = [step for step in steps if step.part in ("targets", "counters", "tuning")]
    assert all(step.alone for step in timed)
    cases = [step.name for step in of_parts(steps, ["targets"])]
    alone = [f"{case}, ours alone" for case in TARGET_CASES]
    assert cases == [*alone, *TARGET_CASES, *TARGET_MODEL_CASES]


def test_every_command_of_ours_is_one_that_the_command_line_takes(tmp_path: Path) -> None:
    checked = set()
    for step in all_steps(tmp_path, "sm_90", TESTS):
        for command in step.commands:
            words = list(command)
            module = words[words.index("-m") + 1] if "-m" in words else ""
            if module == "hmc_fast":
                arguments = words[words.index("hmc_fast") + 1 :]
                assert run([*arguments, "--help"]) == 0, arguments
                checked.add(" ".join(arguments[:2]))
            elif module.startswith("hmc_fast."):
                assert find_spec(module) is not None
                checked.add(module)
    assert {"bench kernels", "bench model", "export tensorrt", "export kernels"} <= checked
    assert {"hmc_fast.bench.gpu.passes", "hmc_fast.bench.gpu.checkpoint"} <= checked
    assert run(["bench", "kernels", "--no-such-option", "--help"]) == 2


@pytest.mark.systems
def test_every_gpu_test_of_the_repository_is_a_step() -> None:
    found = gpu_tests(TESTS)
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-m", "gpu", TESTS]
    printed = subprocess.run(command, capture_output=True, text=True, cwd=TESTS.parent).stdout
    collected = re.findall(r"^tests/(\S+\.py::\w+)", printed, re.MULTILINE)
    assert set(found) == set(collected)
    assert found[0].startswith("kernels/")


def test_a_decorated_test_is_found_and_its_neighbours_are_not(tmp_path: Path) -> None:
    (tmp_path / "test_some.py").write_text(
        "import pytest\n\n@pytest.mark.gpu\ndef test_a(): ...\n\ndef test_b(): ...\n"
    )
    (tmp_path / "test_all.py").write_text(
        "import pytest\npytestmark = [pytest.mark.gpu]\ndef test_c(): ...\ndef helper(): ...\n"
    )
    assert gpu_tests(tmp_path) == ["test_all.py::test_c", "test_some.py::test_a"]


def test_without_a_checkout_its_tests_cannot_run() -> None:
    parity = of_parts(all_steps(Path("out"), "sm_90", None), ["parity"])
    assert [bool(step.why_not) for step in parity] == [False, True]
    assert "checkout" in (parity[1].why_not or "")


@WITHOUT_GPU
def test_every_step_says_in_one_line_that_there_is_no_gpu(tmp_path: Path) -> None:
    steps = [replace(step, why_not=None) for step in all_steps(tmp_path, "sm_90", TESTS)]
    record = run_steps(
        [replace(step, alone=False) for step in steps if step.commands],
        tmp_path,
        minutes=5,
        made_on={},
        environment={},
    )
    assert len(record.results) > 30
    for result in record.results:
        assert result.state == "failed"
        assert (result.reason or "").startswith(f"{NO_DEVICE}: ")


@WITHOUT_GPU
def test_the_command_says_so_too_and_writes_nothing(
    fails: Callable[..., str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert NO_DEVICE in fails("gpu-check", "--out", tmp_path / "x")
    assert run(["gpu-check", "--list", "--json", "--out", str(tmp_path / "x")]) == 0
    assert not (tmp_path / "x").exists()
    listed = json.loads(capsys.readouterr().out)
    assert len(listed) > 30
    for step in listed:
        assert set(step) == {"part", "step", "shows", "why_not"}
        assert step["why_not"], step
    assert listed[0]["why_not"].startswith(f"{NO_DEVICE}: ")


def test_a_skipped_test_proves_nothing(tmp_path: Path) -> None:
    log = tmp_path / "log"
    for text, wrong in (
        ("3 passed in 2.00s", None),
        ("3 passed, 1 skipped in 2.00s", "skipped"),
        ("1 skipped in 2.00s", "skipped"),
        ("no tests ran in 0.01s", "no test ran"),
    ):
        log.write_text(text)
        assert (wrong or "") in (skipped_tests(log) or "")
        assert (skipped_tests(log) is None) == (wrong is None)


def test_our_own_rows_must_be_timed_and_peers_may_fail(record: Record, tmp_path: Path) -> None:
    path = tmp_path / RECORD_FILE
    write_record(path, record)  # one of the peers ran out of memory in it
    assert wrong_rows(path) is None
    for status in ("error", "parity failed", "skipped"):
        ours = Measurement("hsa_c3@1024x8", "triton", "bf16", "both", "stream", status, "because")
        write_record(path, replace(record, measurements=[*record.measurements, ours]))
        assert (wrong_rows(path) or "").endswith(f"triton: {status} (because)")
        assert wrong_rows(path) == broken_rows(path)
    nothing = [row for row in record.measurements if row.status != "ok"]
    peers = [row for row in record.measurements if row.peer not in OURS]
    plain = [row for row in peers if row.subject == "resnet50"]
    for rows, wrong in (
        (nothing, "nothing was timed"),
        ([], "nothing was timed"),
        (peers, "none of ours was timed"),
        (plain, None),  # it has no attention for ours to run
    ):
        write_record(path, replace(record, measurements=rows))
        assert wrong_rows(path) == wrong
        assert broken_rows(path) is None


def test_a_sanitizer_that_fails_for_another_reason_has_found_no_stray_write(tmp_path: Path) -> None:
    log = tmp_path / "log"
    log.write_text("========= Invalid __global__ write of size 2 bytes\n=====  ERROR SUMMARY: 4")
    assert no_stray_write(log) is None
    log.write_text("========= Program hit CUDA_ERROR_NOT_FOUND on CUDA API call\n")
    assert "names no 'Invalid __global__ write'" in (no_stray_write(log) or "")


def test_a_profiler_that_found_no_kernel_has_read_no_counters(tmp_path: Path) -> None:
    assert "no x.ncu-rep" in (no_report(tmp_path / "x.ncu-rep") or "")
    (tmp_path / "x.ncu-rep").touch()
    assert no_report(tmp_path / "x.ncu-rep") is None
    counters = of_parts(all_steps(tmp_path, "sm_90", None), ["counters"])
    for step in counters:
        words = step.commands[0]
        Path(f"{words[words.index('--export') + 1]}.ncu-rep").touch()
        assert step.judge() is None


@pytest.mark.parametrize("architecture", gate.ARCHITECTURES)
def test_the_pass_and_the_profiler_miss_no_kernel(architecture: str) -> None:
    target = Target(load_tiles(architecture), 132, "ieee")
    for task, passes in (("forward", 0), ("backward", 1)):
        launched = {
            launch.kernel.fn.__name__
            for problem in PROBLEMS
            for launch in plan_passes(target, problem)[passes]
        }
        specialised = {name for name in ATTENTION_KERNELS[task] if "specialised" in name}
        others = set() if architecture == "sm_90" else specialised
        assert launched == ATTENTION_KERNELS[task] - others
        for name in launched:
            assert re.search(KERNEL_FILTERS[task].removeprefix("regex:"), name)
            assert re.search(KERNEL_FILTERS["both"].removeprefix("regex:"), name)


def test_steps_take_the_installed_package_and_not_a_folder_of_its_name(tmp_path: Path) -> None:
    """A checkout has an hmc_fast/ without bench, and gpu-check is started in one."""
    (tmp_path / "hmc_fast").mkdir()
    (tmp_path / "hmc_fast" / "__init__.py").write_text("raise SystemExit('the wrong package')")
    step = all_steps(tmp_path, "sm_90", None)[0]
    prefix = step.commands[0][: step.commands[0].index("-m")]
    environment = {k: v for k, v in os.environ.items() if k != "PYTHONSAFEPATH"}
    command = [*prefix, "-c", "import hmc_fast.bench.gpu"]
    done = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr


def test_cases_timed_in_their_own_processes_come_together_on_the_page(
    record: Record, tmp_path: Path
) -> None:
    clocks = {"sm_clock_mhz": 1755.0, "slowed_by_power_cap_percent": 40.0}
    for subject in ("hsa_c3", "hmc_net", "resnet50"):
        rows = [replace(r, clocks=clocks) for r in record.measurements if r.subject == subject]
        rate = {"hsa_c3": 700.0, "hmc_net": 800.0, "resnet50": 750.0}[subject]
        ceilings = [replace(record.ceilings[0], matmul_tflops=rate, when="after")]
        folder = tmp_path / "targets" / subject
        folder.mkdir(parents=True)
        write_record(folder / RECORD_FILE, replace(record, measurements=rows, ceilings=ceilings))
    done = StepResult("hsa_c3@1024x8", "targets", "times", "passed", None, 3.0, 1)
    check = CheckRecord(1, {"GPU": "NVIDIA H200"}, {}, ["hsa_c3@1024x8"], [done])
    markdown, html = write_page(check, tmp_path)
    joined = read_record(tmp_path / "speed" / RECORD_FILE)
    assert len(joined.measurements) == len(record.measurements)
    ceiling = joined.ceiling("bf16")
    assert ceiling is not None
    assert ceiling.matmul_tflops == 800  # a share of the highest
    for page in (markdown.read_text(), html.read_text()):
        assert "attention forward, hsa_c3@1024x8, share" in page
        assert "power cap (40 %)" in page.replace("\u00a0", " ")
        assert "after the cases" in page
    assert (tmp_path / "speed" / "report.html").exists()


def test_cases_timed_alone_count_where_the_peers_broke_theirs(
    record: Record, tmp_path: Path
) -> None:
    """Side by side where that worked, alone where it did not, never both."""
    rows = [row for row in record.measurements if row.subject == "hsa_c3"]
    alone = [replace(r, p50_ms=1.0, tflops=600.0) for r in rows if r.peer == "triton"]
    broken = [replace(r, p50_ms=None, status="error", reason="illegal access") for r in rows]
    check = CheckRecord(1, {}, {}, [], [])
    for name, lines in (("hsa_c3@1024x8-alone", alone), ("hsa_c3@1024x8", broken)):
        (tmp_path / "targets" / name).mkdir(parents=True)
        path = tmp_path / "targets" / name / RECORD_FILE
        write_record(path, replace(record, measurements=lines))
    assert "| 75 % |" in write_page(check, tmp_path)[0].read_text()  # 600 of 800 TFLOP/s
    write_record(path, replace(record, measurements=rows))
    page = write_page(check, tmp_path)[0].read_text()
    assert "| 62 % |" in page
    assert len(read_record(tmp_path / "speed" / RECORD_FILE).measurements) == len(rows)


def test_an_engine_is_not_built_for_a_gpu_that_its_builder_lacks(tmp_path: Path) -> None:
    pytest.importorskip("tensorrt_rtx")

    def of(architecture: str) -> Step:
        steps = all_steps(tmp_path, architecture, None)
        return next(step for step in steps if step.name == "engine of TensorRT for RTX")

    assert of("sm_89").why_not is None
    assert "not for sm_90" in (of("sm_90").why_not or "")
