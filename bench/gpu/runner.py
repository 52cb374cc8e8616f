"""Runs a list of steps, most valuable first, within minutes; the record is whole after each step.

A run that ended early, whatever ended it, is continued by running the same list into the same
folder: what passed or failed stands, the rest is run.
"""

import signal
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from dataclasses import asdict, dataclass, field, replace
from itertools import groupby
from pathlib import Path
from threading import Event, Lock
from typing import Any, Literal

from hmc_fast.bench.gpu.launch import NO_DEVICE
from hmc_fast.bench.gpu.process import run_limited
from hmc_fast.errors import UserError
from hmc_fast.files import make_folder, write_json
from hmc_fast.schema import STRICT, read_json_as

FORMAT = 1
RECORD_FILE = "gpu-check.json"
LOGS = "logs"
MAX_ATTEMPTS = 3
"""A step that was cut off so often is given up: it may be what ends the machine."""
REASON_LENGTH = 300
State = Literal["running", "passed", "failed", "unavailable", "cut"]


@dataclass(frozen=True)
class Step:
    """One thing to prove, by commands in processes of their own.

    Args:
        name: unique in a list; the log is named after it.
        part: what ``--part`` chooses.
        shows: what is proven when it passes.
        commands: one after the other; in each word ``{minutes}`` becomes what a command may plan
            with.
        limit_s: for all commands together; past it the step has failed.
        least_s: it is not begun with less time left.
        alone: nothing else runs beside it, for it takes times.
        exit_code: that the last command must have.
        why_not: why it cannot run here, known without trying.
        needs_gpu: it is not begun without a CUDA device.
        environment: more variables.
        judge: what is wrong with what the commands left, or None.
    """

    name: str
    part: str
    shows: str
    commands: tuple[tuple[str, ...], ...]
    limit_s: float
    least_s: float = 15.0
    alone: bool = True
    exit_code: int = 0
    why_not: str | None = None
    needs_gpu: bool = True
    environment: Mapping[str, str] = field(default_factory=dict)
    judge: Callable[[], str | None] = lambda: None

    @property
    def log(self) -> str:
        """Its log's name."""
        return "".join(c if c.isalnum() or c in "-_.@" else "-" for c in self.name) + ".log"


@dataclass(frozen=True)
class StepResult:
    """What became of a step; ``cut`` is one that time or a kill ended, to be run again."""

    __pydantic_config__ = STRICT
    name: str
    part: str
    shows: str
    state: State
    reason: str | None
    seconds: float
    attempts: int


@dataclass(frozen=True)
class CheckRecord:
    """All that is known; ``names`` are the steps of the list in order, reached or not."""

    __pydantic_config__ = STRICT
    format: int
    made_on: dict[str, str | None]
    environment: dict[str, Any]
    names: list[str]
    results: list[StepResult]

    def having(self, *states: State) -> list[StepResult]:
        """Results in any of ``states``."""
        return [result for result in self.results if result.state in states]

    @property
    def not_reached(self) -> list[str]:
        """Names of steps without a verdict."""
        judged = {r.name for r in self.having("passed", "failed", "unavailable")}
        return [name for name in self.names if name not in judged]


class _Run:
    """The state that steps side by side share."""

    def __init__(self, folder: Path, record: CheckRecord, on_change: "OnChange") -> None:
        self.folder = folder
        self.record = record
        self.on_change = on_change
        self.stop = Event()
        self._lock = Lock()

    def note(self, result: StepResult) -> None:
        """Put ``result`` in the place of the step's earlier one, and write the record."""
        with self._lock:
            others = {r.name: r for r in self.record.results} | {result.name: result}
            ordered = [others[name] for name in self.record.names if name in others]
            self.record = replace(self.record, results=ordered)
            write_json(self.folder / RECORD_FILE, asdict(self.record))
            self.on_change(self.record, result)

    def attempts(self, name: str) -> int:
        return next((r.attempts for r in self.record.results if r.name == name), 0)


OnChange = Callable[[CheckRecord, StepResult], object]


def run_steps(
    steps: Sequence[Step],
    folder: Path,
    *,
    minutes: float,
    made_on: dict[str, str | None],
    environment: dict[str, Any],
    workers: int = 3,
    retry: bool = False,
    on_change: OnChange = lambda record, result: None,
) -> CheckRecord:
    """Run ``steps`` in order, neighbours that are not ``alone`` side by side, and record each.

    Args:
        steps: most valuable first.
        folder: gets ``gpu-check.json`` and the logs.
        minutes: no step is begun after them, and what then runs is cut.
        made_on: what must be the same for a record to be continued.
        environment: written into a new record.
        workers: steps side by side at most.
        retry: run what failed once more.
        on_change: is told each result, also those of steps that begin (``running``).

    Raises :class:`UserError` where the folder cannot be used or holds a record made on something
    else. A ``KeyboardInterrupt`` ends the running steps and leaves the record whole.
    """
    deadline = time.monotonic() + 60 * minutes
    make_folder(folder)
    make_folder(folder / LOGS)
    known = _earlier(folder, made_on, retry=retry)
    # What another choice of parts has shown stays in the record.
    names = list(dict.fromkeys([*(r.name for r in known), *(step.name for step in steps)]))
    record = CheckRecord(FORMAT, made_on, environment, names, known)
    run = _Run(folder, record, on_change)
    judged = {r.name for r in record.having("passed", "failed", "unavailable")}
    left = [step for step in steps if step.name not in judged]
    for alone, neighbours in groupby(left, lambda step: step.alone):
        with ThreadPoolExecutor(1 if alone else workers) as pool:
            futures = [pool.submit(_run_step, run, step, deadline) for step in neighbours]
            try:
                _finish(futures)
            except BaseException:
                run.stop.set()
                pool.shutdown(cancel_futures=True)
                raise
    return run.record


def _finish(futures: Sequence["Future[None]"]) -> None:
    pending = set(futures)
    while pending:
        done, pending = wait(pending, return_when=FIRST_COMPLETED)
        for future in done:
            future.result()


def _earlier(folder: Path, made_on: dict[str, str | None], *, retry: bool) -> list[StepResult]:
    """Results of the run that is continued; those that were running when it ended are cut."""
    path = folder / RECORD_FILE
    if not path.exists():
        return []
    record = read_json_as(CheckRecord, path)
    if record.format != FORMAT or record.made_on != made_on:
        theirs = ", ".join(f"{k} {v}" for k, v in record.made_on.items() if made_on.get(k) != v)
        raise UserError(
            f"{path}: was made with {theirs or 'another release'}, which is not what runs now; "
            "name another folder with --out"
        )
    results = []
    for result in record.results:
        if result.state == "running":
            results.append(_after_kill(result))
        elif not (retry and result.state in ("failed", "unavailable")):
            results.append(result)
    return results


def _after_kill(result: StepResult) -> StepResult:
    if result.attempts >= MAX_ATTEMPTS:
        reason = f"the check was killed {result.attempts} times while this ran; given up"
        return replace(result, state="failed", reason=reason)
    return replace(result, state="cut", reason="the check was killed while this ran")


def _run_step(run: _Run, step: Step, deadline: float) -> None:
    result = StepResult(
        step.name, step.part, step.shows, "running", None, 0.0, run.attempts(step.name) + 1
    )
    if step.why_not is not None:
        run.note(replace(result, state="unavailable", reason=step.why_not))
        return
    started = time.monotonic()
    if run.stop.is_set() or deadline - started < step.least_s:
        return
    run.note(result)
    limit_s = min(step.limit_s, deadline - started)
    state, reason = _run_commands(run, step, started + limit_s)
    seconds = time.monotonic() - started
    if state == "cut" and not run.stop.is_set() and limit_s == step.limit_s:
        state, reason = "failed", f"not finished after {limit_s:.0f} s; {reason}"
    run.note(replace(result, state=state, reason=reason, seconds=round(seconds, 1)))


def _run_commands(run: _Run, step: Step, end: float) -> tuple[State, str | None]:
    log = run.folder / LOGS / step.log
    log.unlink(missing_ok=True)
    for number, command in enumerate(step.commands, start=1):
        left = max(0.0, end - time.monotonic())
        words = [word.replace("{minutes}", f"{0.8 * left / 60:.2f}") for word in command]
        ended = run_limited(
            words,
            log,
            left,
            run.stop,
            needs_gpu=step.needs_gpu,
            environment=step.environment,
        )
        if ended.code is None:
            what = "interrupted" if run.stop.is_set() else "the time was over"
            return "cut", f"{what}; last line: {_last_line(log)}"
        expected = step.exit_code if number == len(step.commands) else 0
        if ended.code != expected:
            return "failed", _how(ended.code, expected, log)
    try:
        wrong = step.judge()
    except UserError as error:  # what the commands should have left is missing or damaged
        wrong = str(error)
    return ("passed", None) if wrong is None else ("failed", wrong)


def _how(code: int, expected: int, log: Path) -> str:
    line = _last_line(log)
    if line.startswith(NO_DEVICE):
        return line
    if code < 0:
        return f"killed by {signal.Signals(-code).name}; last line: {line}"
    if expected:
        return f"exit code {code}, where {expected} was to come; last line: {line}"
    return line or f"exit code {code}"


def _last_line(log: Path) -> str:
    """The line of a log that says most: the last of an error's own, else the last."""
    with log.open("rb") as file:
        file.seek(max(0, log.stat().st_size - 2**16))
        text = file.read().decode("utf-8", "replace")
    lines = [" ".join(line.split()) for line in text.splitlines()]
    marked = [line for line in lines if line.startswith(("hmc-fast: ", "FAILED ", "ERROR "))]
    said = [line for line in lines if line and not line.startswith(("=", "---"))]
    return (marked or said or [""])[-1][:REASON_LENGTH]
