"""What ``hmc-fast gpu-check`` runs, most valuable first.

Parity before anything, then what no assertion sees (stray accesses), then our own speed, what was
exported and never run, the peers' speed, counters, and proposals for better tiles.
"""

import ast
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path

import torch

from hmc_fast.bench.cases import parse_case
from hmc_fast.bench.gpu.runner import LOGS, Step
from hmc_fast.bench.jobs.presets import PRESETS
from hmc_fast.bench.jobs.targets import OPERATOR_CASE, OURS
from hmc_fast.bench.measuring.device import device_facts
from hmc_fast.bench.measuring.traces import ncu_command
from hmc_fast.bench.peers.peer import why_no_attention
from hmc_fast.bench.record import RECORD_FILE, Record, read_record
from hmc_fast.environment import environment, git_revision
from hmc_fast.errors import UserError
from hmc_fast.export.builders import Builder

PARTS = ("parity", "sanitizer", "targets", "engines", "warm-up", "counters", "tuning")
TARGETS = "targets"
"""The part, and the folder of its cases, one folder each."""
ALONE = "-alone"
"""Ends the folders of cases that were timed without peers."""
# In a checkout the working directory has an hmc_fast/ without bench and kernels, which must not
# stand before the installed package.
_PYTHON = (sys.executable, "-P", "-m")
_HMC_FAST = (*_PYTHON, "hmc_fast")
_MEMCHECK = ("compute-sanitizer", "--tool", "memcheck", "--error-exitcode", "9")
_STRAY_WRITE = "Invalid __global__ write"
_EVERY_TENSOR_ALONE = {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}
"""In PyTorch's pools a stray access hits another tensor and is not seen."""


def all_steps(folder: Path, architecture: str | None, tests: Path | None) -> list[Step]:
    """Every step, in order.

    Args:
        folder: where the check writes.
        architecture: of the GPU, such as ``"sm_90"``; None only to list the steps.
        tests: the repository's folder of tests, None where only the package is installed.
    """
    return [
        *_parity(folder, tests),
        *_sanitizer(folder),
        *_alone(folder),
        *_engines(folder, architecture),
        *_cases("warm-up", folder),
        *_cases(TARGETS, folder),
        *_counters(folder),
        Step(
            "tiles",
            "tuning",
            "which tiles are fastest on this GPU: a proposal to review, nothing changes",
            ((*_HMC_FAST, "kernels", "tune", "--out", str(folder / "proposed-tiles.json")),),
            limit_s=1800,
            least_s=60,
        ),
    ]


def identity() -> tuple[dict[str, str | None], str]:
    """What a check is made on (its record is continued on the same alone), and the architecture."""
    packages = environment()["packages"]
    device = device_facts(torch.device("cuda", 0))
    made_on = {
        "GPU": device.name,
        "torch": packages["torch"],
        "triton": packages["triton"],
        "revision": git_revision(),
    }
    assert device.architecture is not None
    return made_on, device.architecture


def of_parts(steps: Sequence[Step], parts: Sequence[str] | None) -> list[Step]:
    """Those of ``parts``, all where None is named. Raises :class:`UserError` for an unknown one."""
    for part in parts or ():
        if part not in PARTS:
            raise UserError(f"unknown part {part!r}; choose of {', '.join(PARTS)}")
    return [step for step in steps if parts is None or step.part in parts]


def _parity(folder: Path, tests: Path | None) -> Iterator[Step]:
    yield Step(
        "every kernel once",
        "parity",
        "each fused kernel and each engine kernel runs here and keeps the error budget in bf16",
        ((*_PYTHON, "hmc_fast.bench.gpu.passes"),),
        limit_s=300,
    )
    if tests is None:
        yield Step(
            "tests marked gpu",
            "parity",
            "error budgets at every precision, long sequences, identical bits, CUDA graphs",
            (),
            limit_s=0,
            why_not="the tests are not here: start it in a checkout of the repository",
        )
        return
    for test in gpu_tests(tests):
        path = str(tests / test)
        step = Step(
            test,
            "parity",
            test.rpartition("::")[2].removeprefix("test_").replace("_", " "),
            ((*_PYTHON, "pytest", "-q", "-m", "gpu", "-p", "no:cacheprovider", path),),
            limit_s=600,
            alone=False,
        )
        yield replace(step, judge=partial(skipped_tests, folder / LOGS / step.log))


def gpu_tests(tests: Path) -> list[str]:
    """``FILE::FUNCTION`` of every test marked ``gpu``, kernels' first; nothing is imported."""
    found = []
    for path in sorted(tests.rglob("test_*.py"), key=lambda p: ("kernels" not in p.parts, p)):
        module = ast.parse(path.read_text(encoding="utf-8"))
        whole = any(
            isinstance(node, ast.Assign)
            and any(ast.unparse(target) == "pytestmark" for target in node.targets)
            and _is_gpu(node.value)
            for node in module.body
        )
        found += [
            f"{path.relative_to(tests)}::{node.name}"
            for node in module.body
            if isinstance(node, ast.FunctionDef)
            and node.name.startswith("test_")
            and (whole or any(_is_gpu(mark) for mark in node.decorator_list))
        ]
    return found


def skipped_tests(log: Path) -> str | None:
    """What is wrong with a run of tests that failed none: a skipped test proves nothing."""
    text = log.read_text(encoding="utf-8", errors="replace")
    if re.search(r"\b\d+ skipped\b", text):
        return "tests were skipped: the reasons are in the log"
    return None if re.search(r"\b\d+ passed\b", text) else "no test ran"


def _is_gpu(mark: ast.expr) -> bool:
    return "pytest.mark.gpu" in ast.unparse(mark)


def _sanitizer(folder: Path) -> Iterator[Step]:
    missing = shutil.which(_MEMCHECK[0]) is None
    why_not = "compute-sanitizer is not on PATH: install the CUDA toolkit" if missing else None
    once = (*_MEMCHECK, *_PYTHON, "hmc_fast.bench.gpu.passes")
    planted = Step(
        "planted stray write",
        "sanitizer",
        "compute-sanitizer finds a stray write of our kernels where there is one",
        ((*once, "--stray"),),
        limit_s=600,
        exit_code=9,
        why_not=why_not,
        environment=_EVERY_TENSOR_ALONE,
    )
    yield replace(planted, judge=partial(no_stray_write, folder / LOGS / planted.log))
    yield Step(
        "no stray access",
        "sanitizer",
        "compute-sanitizer finds none in a pass of every kernel on odd shapes",
        (once,),
        limit_s=900,
        why_not=why_not,
        environment=_EVERY_TENSOR_ALONE,
    )


def no_stray_write(log: Path) -> str | None:
    """What is wrong with a run that must find a stray write: its exit code means any error."""
    if _STRAY_WRITE in log.read_text(encoding="utf-8", errors="replace"):
        return None
    return f"the sanitizer ended with an error, but names no {_STRAY_WRITE!r}"


def _engines(folder: Path, architecture: str | None) -> Iterator[Step]:
    made = folder / "exports"
    model, films = made / "small.safetensors", made / "phantoms"
    prepare = (*_PYTHON, "hmc_fast.bench.gpu.checkpoint", str(model), str(films))
    cubins = ("export", "kernels", str(model), "--out", str(made / "kernels"), "--check")
    yield Step(
        "exported kernels",
        "engines",
        "exported cubins, launched through the CUDA driver, agree with the reference",
        (prepare, (*_HMC_FAST, *cubins, "--target", architecture or "")),
        limit_s=300,
    )
    for name, module, options in (
        ("engine of TensorRT for RTX", "tensorrt_rtx", ("tensorrt-rtx",)),
        ("engine of TensorRT", "tensorrt", ("tensorrt",)),
        ("engine with our plugin", "tensorrt", ("tensorrt", "--plugin")),
    ):
        engine = made / (name.replace(" ", "-") + ".engine")
        build = ["export", "tensorrt", str(model), "--out", str(engine), "--flavour", *options]
        build += ["--target", architecture or ""]
        check = ("verify", str(engine), "--data", str(films), "--require-engine")
        yield Step(
            name,
            "engines",
            "it is built, loaded and run here, and agrees with its checkpoint",
            (prepare, (*_HMC_FAST, *build), (*_HMC_FAST, *check)),
            limit_s=900,
            why_not=_why_no_engine(options[0], module, architecture),
        )


def _why_no_engine(flavour: str, module: str, architecture: str | None) -> str | None:
    if find_spec(module) is None:
        return f"{flavour} is not installed: pip install 'hmc-fast[{flavour}]'"
    if architecture is None or flavour != "tensorrt-rtx":
        return None
    targets = Builder(flavour).known_targets()
    if architecture in targets:
        return None
    return f"{flavour} builds for {', '.join(targets)}, not for {architecture}"


def _alone(folder: Path) -> Iterator[Step]:
    """Ours without any peer, which might hang or break the GPU's context for all in its process."""
    for name in PRESETS["targets"].operators:
        out = folder / TARGETS / f"{name}{ALONE}"
        options = ("--case", name, "--preset", "targets", "--peer", "triton", "--out", str(out))
        yield Step(
            f"{name}, ours alone",
            TARGETS,
            "our kernels' share of the measured ceilings, with clocks",
            ((*_HMC_FAST, "bench", "kernels", *options, "--minutes", "{minutes}"),),
            limit_s=300,
            least_s=30,
            judge=partial(wrong_rows, out / RECORD_FILE),
        )


def _cases(part: str, folder: Path) -> Iterator[Step]:
    """One process a case: what one peer breaks poisons no other case's rows."""
    timed = part == TARGETS
    preset = PRESETS["targets"]
    for name in (*preset.operators, *preset.models):
        case = parse_case(name)
        command = "model" if case.kind == "model" else "kernels"
        out = folder / part / name.replace("/", "-")
        options = ["--case", name, "--preset", "targets", "--minutes", "{minutes}"]
        options += ["--out", str(out), *(() if timed else ("--seconds", "0.01"))]
        yield Step(
            f"{name}{'' if timed else ', compiled'}",
            part,
            "every peer beside ours, parity first, with clocks and ceilings"
            if timed
            else "every peer compiled and run once, so that timing does not wait for compilers",
            ((*_HMC_FAST, "bench", command, *options),),
            limit_s=600,
            least_s=30,
            alone=timed,
            judge=partial(wrong_rows if timed else broken_rows, out / RECORD_FILE),
        )


def wrong_rows(path: Path) -> str | None:
    """What is wrong with our own rows of a record, or None; peers may fail as they like.

    Where a case has attention one of ours must have been timed, elsewhere any peer.
    """
    record = read_record(path)
    if wrong := _broken(record):
        return wrong
    timed = [row for row in record.measurements if row.p50_ms]
    if not timed:
        return "nothing was timed"
    attended = any(why_no_attention(parse_case(row.case)) is None for row in record.measurements)
    if attended and not any(row.peer in OURS for row in timed):
        return "none of ours was timed"
    return None


def broken_rows(path: Path) -> str | None:
    """What of ours broke in a record, or None; whether it was timed does not matter."""
    return _broken(read_record(path))


def _broken(record: Record) -> str | None:
    for row in record.measurements:
        if row.peer in OURS and row.status not in ("ok", "unavailable"):
            return f"{row.label}: {row.status} ({row.reason})"
    return None


def _counters(folder: Path) -> Iterator[Step]:
    why_not = None if shutil.which("ncu") else "ncu is not on PATH: install Nsight Compute"
    for task in ("forward", "backward"):
        report = folder / f"ncu-{OPERATOR_CASE}-{task}"
        yield Step(
            f"counters of {task}, {OPERATOR_CASE}",
            "counters",
            f"what holds our kernels back, in {report.name}.ncu-rep",
            (tuple(ncu_command(OPERATOR_CASE, task, "bf16", _HMC_FAST, report)),),
            limit_s=600,
            least_s=60,
            why_not=why_not,
            judge=partial(no_report, report.with_name(f"{report.name}.ncu-rep")),
        )


def no_report(path: Path) -> str | None:
    """What is wrong with a run of ncu, which succeeds where it found no kernel to profile."""
    return None if path.is_file() else f"ncu profiled none of our kernels: there is no {path.name}"
