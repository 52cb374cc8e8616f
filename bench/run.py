"""The one runner: cases × peers × tasks, parity first, timed side by side.

A peer that cannot run, breaks, runs out of memory or is wrong is a row with its reason, and the
rest goes on. The record on disk is whole after every case.
"""

import time
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

import torch
import torch._dynamo

from hmc_fast.bench.cases import Case, Kind, Task
from hmc_fast.bench.engine_facts import BuiltNotRunError
from hmc_fast.bench.failures import describe, status_of
from hmc_fast.bench.measuring.ceilings import Ceiling, When, measure_ceiling
from hmc_fast.bench.measuring.clock import (
    Clock,
    TimedCall,
    Timing,
    TimingResults,
    capture,
    clock_for,
    outliers,
    time_side_by_side,
)
from hmc_fast.bench.measuring.device import clocks_during, clocks_seen, device_facts
from hmc_fast.bench.measuring.load import cpu_times, load_between, load_marks
from hmc_fast.bench.measuring.memory import release
from hmc_fast.bench.measuring.resources import resources_of
from hmc_fast.bench.measuring.roofline import work_of
from hmc_fast.bench.measuring.traces import annotated
from hmc_fast.bench.parity import budget_units
from hmc_fast.bench.peers import choose_peers, peer_names
from hmc_fast.bench.peers.peer import Peer
from hmc_fast.bench.record import (
    RECORD_FILE,
    Measurement,
    Record,
    Status,
    keep_earlier,
    write_record,
)
from hmc_fast.bench.trials import INPUT_SETS, Trial, Trials, tasks_of, trials_of
from hmc_fast.devices import default_device, precision_dtype
from hmc_fast.environment import environment
from hmc_fast.errors import UserError
from hmc_fast.files import make_folder
from hmc_fast.kernels.cpu.compiled import attention as compiled
from hmc_fast.kernels.testing import BudgetUse

OVER = "the time set for the whole run was over"
GRAPH_BELOW_MS = {"operator": 5.0, "block": 5.0, "model": 20.0}
"""Slower calls are not captured in graphs: their launches hide behind their work."""
MODEL_SECONDS = 2
"""Models get this many times the seconds of operators."""
CEILING_SECONDS = 0.5
"""For the ceilings beside each case: a clock that sank since the start sinks them too."""
LOADED_ATTEMPTS = 3
"""A timing on a loaded CPU is taken this often at most."""
Stage = Callable[[str], object]


@dataclass(frozen=True)
class Plan:
    """What a run measures.

    Args:
        job: name of the command.
        cases: in the order in which they are measured.
        precisions: of fp32, bf16 and fp16.
        peers: names, or None for the usual ones of this device.
        graphs: also time fast calls as CUDA graphs, on a GPU.
        seconds: time for each interleaved measurement.
        minutes: when to stop; what is left is a row that says so.
    """

    job: str
    cases: tuple[Case, ...]
    precisions: tuple[str, ...]
    peers: tuple[str, ...] | None = None
    graphs: bool = True
    seconds: float = 2.0
    minutes: float = 30.0

    def __post_init__(self) -> None:
        for precision in self.precisions:
            precision_dtype(precision)
        kinds = dict.fromkeys(case.kind for case in self.cases)
        able = {p.name for kind in kinds for p in self.peers_of(kind)}
        for name in self.peers or ():
            if name not in able:
                raise UserError(
                    f"peer {name!r} does no case of kind {' or '.join(kinds)}; choose of "
                    f"{', '.join(peer_names(*kinds))}"
                )

    def peers_of(self, kind: Kind) -> tuple[Peer, ...]:
        """The peers of a kind of case. Raises :class:`UserError` for an unknown name."""
        return choose_peers(self.peers, kind, default_device())

    def to_json(self) -> dict[str, Any]:
        kinds = dict.fromkeys(case.kind for case in self.cases)
        return {
            **vars(self),
            "cases": [case.label for case in self.cases],
            "peers": {kind: [p.name for p in self.peers_of(kind)] for kind in kinds},
        }

    def lines(self) -> list[list[str]]:
        """Every case with its tasks and peers, without measuring anything."""
        return [
            [
                f"{case.name} {precision}",
                ", ".join(case.tasks),
                ", ".join(p.name for p in self.peers_of(case.kind)),
            ]
            for case in self.cases
            for precision in self.precisions
        ]


@dataclass(frozen=True)
class Ready:
    """A variant that ran and is right; ``failed`` are the peer's that did not."""

    row: Measurement
    trial: Trial
    peer: Peer
    failed: tuple[Measurement, ...] = ()

    @property
    def name(self) -> str:
        return f"{self.row.label}: {self.row.variant}"


@dataclass(frozen=True)
class CaseRun:
    """One case at some precisions; it takes its memory in :meth:`run`, not before.

    ``trials`` makes the inputs and the truth at a precision. Peers are sampled in turn with each
    other, at all precisions together.
    """

    case: Case
    precisions: tuple[str, ...]
    peers: tuple[Peer, ...]
    trials: Callable[[str], Trials]
    device: torch.device
    clock: Clock
    seconds: float
    graphs: bool = True
    ceilings: Mapping[str, Ceiling] | None = None
    on_stage: Stage = lambda stage: None

    def unmeasured(self, status: Status, reason: str) -> list[Measurement]:
        """A row for everything that would have been measured."""
        return [
            replace(self._row(peer, precision, task), status=status, reason=reason)
            for task in self.case.tasks
            for precision in self.precisions
            for peer in self.peers
        ]

    def run(self, deadline_s: float = float("inf")) -> list[Measurement]:
        """Rows of the case; past ``deadline_s`` they say that they were skipped."""
        trials: dict[str, Trials] = {}
        for precision in self.precisions:
            self.on_stage(f"{self.case.name} {precision}: fp64 truth for parity")
            trials[precision] = self.trials(precision)
        rows: list[Measurement] = []
        for task in self.case.tasks:
            ready: list[Ready] = []
            for peer, precision in ((p, q) for q in self.precisions for p in self.peers):
                row = self._row(peer, precision, task)
                if time.perf_counter() > deadline_s:
                    rows.append(replace(row, status="skipped", reason=OVER))
                    continue
                self.on_stage(f"{self.case.name} {precision} {task}: {peer.name}, parity")
                passed, failed = self._prepare(row, peer, task, trials[precision])
                ready += passed
                if not passed:
                    rows.append(_unmade(row, failed))
            rows += self._measure(ready, task, trials, deadline_s)
        return with_speed_ups(rows)

    def _row(self, peer: Peer, precision: str, task: Task) -> Measurement:
        return Measurement(self.case.name, peer.name, precision, task, "stream", "ok")

    def _prepare(
        self, row: Measurement, peer: Peer, task: Task, trials: Trials
    ) -> tuple[list[Ready], list[Measurement]]:
        """Every variant that runs the task and is right, and a row with its reason for the rest."""
        dtype = precision_dtype(row.precision)
        try:
            reason = peer.why_not(self.case, dtype, self.device)
            if reason is not None:
                return [], [replace(row, status="unavailable", reason=reason)]
            variants = [v for v in trials.variants(peer) if task in tasks_of(v)]
        except Exception as error:  # a peer's own preparations may fail as its calls do
            return [], [replace(row, status=status_of(error), reason=describe(error))]
        if not variants:
            reason = f"it has no way to do {task}"
            return [], [replace(row, status="unavailable", reason=reason)]
        passed: list[Ready] = []
        failed: list[Measurement] = []
        for variant in variants:
            attempt = replace(row, variant=variant.name)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                try:
                    trial = trials.make(peer, variant, task)
                except BuiltNotRunError as built:
                    failed.append(
                        replace(attempt, status="built", reason=str(built), engine=built.facts)
                    )
                except Exception as error:  # whatever a peer raises belongs in its row
                    reason = describe(error, caught)
                    failed.append(replace(attempt, status=status_of(error), reason=reason))
                else:
                    attempt = replace(with_parity(attempt, trial.use), **trial.fields)
                    if attempt.status == "ok":
                        passed.append(Ready(attempt, trial, peer))
                    else:
                        failed.append(attempt)
            release(self.device)
        return [replace(made, failed=tuple(failed)) for made in passed], failed

    def _measure(
        self,
        ready: Sequence[Ready],
        task: Task,
        trials: Mapping[str, Trials],
        deadline_s: float,
    ) -> list[Measurement]:
        """The best variant of every peer, after all of them were timed."""
        if not ready:
            return []
        self.on_stage(f"{self.case.name} {task}: timing {len(ready)} variants side by side")
        calls = {
            made.name: replace(
                made.trial.call, run=_marked(made.trial.call.run, annotated(made.name))
            )
            for made in ready
        }
        timed = self._timed({made.name: made.row for made in ready}, calls, task, deadline_s)
        rows = []
        best_calls: dict[str, TimedCall] = {}
        for label in dict.fromkeys(made.row.label for made in ready):
            rivals = [made for made in ready if made.row.label == label]
            best = min(rivals, key=lambda made: timed[made.name].p50_ms or float("inf"))
            row = replace(timed[best.name], tried=_tried(rivals, timed))
            if row.status == "ok":
                self.on_stage(f"{label}: memory")
                try:
                    peak_mib = trials[row.precision].peak_mib(best.peer, best.trial)
                    row = replace(row, peak_mib=peak_mib)
                except Exception as error:  # the time stands; why there is no memory beside it
                    row = replace(row, reason=describe(error))
            rows.append(row)
            best_calls[label] = calls[best.name]
        if self.graphs and self.device.type == "cuda" and task not in ("backward", "training"):
            rows += self._graph_rows(rows, best_calls, task, deadline_s)
        return rows

    def _graph_rows(
        self,
        measured: Sequence[Measurement],
        calls: Mapping[str, TimedCall],
        task: Task,
        deadline_s: float,
    ) -> list[Measurement]:
        """Rows of fast calls as CUDA graphs; a graph holds a backward pass with its forward."""
        rows: dict[str, Measurement] = {}
        graphs: dict[str, TimedCall] = {}
        failed = []
        peers = {peer.name: peer for peer in self.peers}
        for row in measured:
            slow = row.p50_ms is None or row.p50_ms > GRAPH_BELOW_MS[self.case.kind]
            if slow or peers[row.peer].family == "runtime":
                continue
            blank = replace(
                Measurement(row.case, row.peer, row.precision, row.task, "graph", "ok"),
                variant=row.variant,
                budget_units=row.budget_units,
                budget_tensor=row.budget_tensor,
            )
            try:
                graphs[blank.label] = capture(calls[row.label], INPUT_SETS, self.device)
                rows[blank.label] = blank
            except Exception as error:  # a capture fails for many reasons, each the peer's own
                failed.append(replace(blank, status="error", reason=describe(error)))
        return failed + list(self._timed(rows, graphs, task, deadline_s).values())

    def _timed(
        self,
        rows: Mapping[str, Measurement],
        calls: Mapping[str, TimedCall],
        task: Task,
        deadline_s: float,
    ) -> dict[str, Measurement]:
        if not calls:
            return {}
        with clocks_during(self.device) as clocks:
            results, load = sample_quietly(calls, self.device, self.clock, self.seconds, deadline_s)
        timed = {}
        for name, row in rows.items():
            if name in results.failures:
                error = results.failures[name]
                timed[name] = replace(row, status=status_of(error), reason=describe(error))
            else:
                row = replace(with_times(row, results.timings[name], clocks), load=load)
                timed[name] = self._with_work(row, task)
        return timed

    def _with_work(self, row: Measurement, task: Task) -> Measurement:
        """Work and floor of operators and blocks, images a second of models."""
        assert row.p50_ms is not None
        if self.case.kind == "model":
            batch = self.case.batch
            return replace(row, throughput_per_s=batch / row.p50_ms * 1e3, throughput_batch=batch)
        if self.ceilings is None:
            return row
        ceiling = self.ceilings[row.precision]
        work = work_of(self.case, task, precision_dtype(row.precision))
        floor_ms = work.floor_ms(ceiling.flops_per_s, ceiling.bytes_per_s)
        return replace(
            row,
            flops=work.flops,
            bytes=work.bytes,
            floor_ms=floor_ms,
            bound=work.bound(ceiling.flops_per_s, ceiling.bytes_per_s),
            tflops=work.flops / row.p50_ms / 1e9,
            ceiling_share=floor_ms / row.p50_ms,
        )


def _unmade(row: Measurement, failed: Sequence[Measurement]) -> Measurement:
    """The row of a peer none of whose variants ran and was right."""
    worst = next((f for f in failed if f.status == "parity failed"), failed[-1])
    if len(failed) == 1:
        return replace(worst, variant=None)
    reasons = dict.fromkeys(f"{f.variant}: {f.reason}" for f in failed)
    return replace(worst, reason="; ".join(reasons), variant=None)


def _tried(
    rivals: Sequence[Ready], timed: Mapping[str, Measurement]
) -> dict[str, float | str] | None:
    """What became of each of a peer's variants, None where it has one alone."""
    rows = [*(timed[made.name] for made in rivals), *rivals[0].failed]
    if len(rows) == 1:
        return None
    fates = ((row.variant, row.p50_ms if row.p50_ms is not None else row.reason) for row in rows)
    return {str(variant): fate if fate is not None else "" for variant, fate in fates}


def sample_quietly(
    calls: Mapping[str, TimedCall],
    device: torch.device,
    clock: Clock,
    seconds: float,
    deadline_s: float = float("inf"),
) -> tuple[TimingResults, dict[str, float]]:
    """Timings and their load; on a CPU those under load are repeated, the quietest is kept.

    A GPU's times are its own: what runs beside it on the host is marked, not repeated.
    """
    attempts: list[tuple[TimingResults, dict[str, float]]] = []
    while len(attempts) < LOADED_ATTEMPTS:
        before = cpu_times()
        results = time_side_by_side(calls, clock, input_sets=INPUT_SETS, seconds=seconds)
        load = load_between(before, cpu_times())
        attempts.append((results, load))
        if results.failures:
            return results, load
        in_time = time.perf_counter() + seconds < deadline_s
        if not load_marks(load) or device.type != "cpu" or not in_time:
            break
    results, load = min(attempts, key=lambda attempt: sum(attempt[1].values()))
    return results, {**load, "attempts": len(attempts)} if load else {}


def set_aside(folder: Path, on_stage: Stage) -> None:
    """Keep the record of an earlier run into ``folder`` under another name, and say so."""
    kept = keep_earlier(folder / RECORD_FILE)
    if kept is not None:
        on_stage(f"{folder / RECORD_FILE}: of an earlier run, kept as {kept.name}")


def run_cases(runs: Iterator[CaseRun], deadline_s: float) -> Iterator[list[Measurement]]:
    """Rows of each case in turn; ``deadline_s`` counts on ``time.perf_counter``.

    Compiled code and memory of a case are given back before the next begins.
    """
    # Every peer and batch size is a graph of its own, more than the limit's default of 8.
    limits = torch._dynamo.config.patch(recompile_limit=256, accumulated_recompile_limit=4096)
    for run in runs:
        if time.perf_counter() > deadline_s:
            yield run.unmeasured("skipped", OVER)
            continue
        with limits:
            try:
                rows = run.run(deadline_s)
            except Exception as error:  # the inputs or the truth do not fit into memory, or so
                rows = run.unmeasured("error", describe(error))
        yield rows
        device = run.device
        del run
        torch._dynamo.reset()
        release(device)


def run_plan(
    plan: Plan,
    folder: Path,
    *,
    on_stage: Stage = lambda stage: None,
    on_case: Callable[[str, int, int], object] = lambda case, done, total: None,
) -> Record:
    """Measure ``plan`` into ``folder/record.jsonl``, which is whole after every case.

    A record that lies there is kept under another name, which ``on_stage`` is told.

    Raises :class:`hmc_fast.errors.UserError` where the folder cannot be written.
    """
    deadline_s = time.perf_counter() + 60 * plan.minutes
    path = make_folder(folder) / RECORD_FILE
    set_aside(folder, on_stage)
    device = default_device()
    clock = clock_for(device)
    record = start_record(plan.job, plan.to_json(), device)
    attention = [case for case in plan.cases if case.kind != "model"]
    rated = plan.precisions if attention else ()
    record = _with_ceilings(record, rated, "before", device, clock, on_stage)
    ceilings = {ceiling.precision: ceiling for ceiling in record.ceilings}
    pairs = [(case, precision) for case in plan.cases for precision in plan.precisions]

    def case_runs() -> Iterator[CaseRun]:
        for case, precision in pairs:
            beside = dict(ceilings)
            if case.kind != "model" and time.perf_counter() < deadline_s:
                on_stage(f"{case.name} {precision}: ceilings beside the case")
                beside[precision] = measure_ceiling(
                    precision, precision_dtype(precision), device, clock, seconds=CEILING_SECONDS
                )
            yield _case_run(plan, case, precision, beside, device, clock, on_stage)

    for rows in run_cases(case_runs(), deadline_s):
        record = replace(record, measurements=[*record.measurements, *rows])
        write_record(path, record)
        on_case(rows[0].case if rows else "", 1, len(pairs))
    operators = [case for case in attention if case.kind == "operator"]
    if any(p.name == "triton" for p in plan.peers_of("operator")) and operators:
        on_stage("registers, shared memory and spills of our kernels")
        record = replace(record, resources=resources_of(operators, plan.precisions, device))
    if device.type == "cuda" and time.perf_counter() < deadline_s:
        record = _with_ceilings(record, rated, "after", device, clock, on_stage)
    record = finish_record(record, device)
    write_record(path, record)
    return record


def _with_ceilings(
    record: Record,
    precisions: Sequence[str],
    when: When,
    device: torch.device,
    clock: Clock,
    on_stage: Stage,
) -> Record:
    """``record`` with the ceilings of this moment; a GPU that grew hot reaches less afterwards."""
    measured = list(record.ceilings)
    for precision in precisions:
        on_stage(f"ceilings of {precision}, {when}: a large matrix product, a large copy")
        ceiling = measure_ceiling(precision, precision_dtype(precision), device, clock)
        measured.append(replace(ceiling, when=when))
    return replace(record, ceilings=measured)


def _case_run(
    plan: Plan,
    case: Case,
    precision: str,
    ceilings: Mapping[str, Ceiling],
    device: torch.device,
    clock: Clock,
    on_stage: Stage,
) -> CaseRun:
    return CaseRun(
        case,
        (precision,),
        plan.peers_of(case.kind),
        lambda name: trials_of(case, precision_dtype(name), device),
        device,
        clock,
        plan.seconds * (MODEL_SECONDS if case.kind == "model" else 1),
        plan.graphs,
        ceilings,
        on_stage,
    )


def start_record(job: str, options: dict[str, Any], device: torch.device) -> Record:
    """A record without rows, with the environment and the clocks of this moment."""
    return Record(
        job=job,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        environment=environment() | _cpu_attention(device),
        device={**device_facts(device).to_json(), "clocks_before": clocks_seen(device)},
        options=options,
    )


def _cpu_attention(device: torch.device) -> dict[str, str]:
    """Which attention of ours runs on a CPU, or why it is not the compiled one."""
    if device.type != "cpu":
        return {}
    return {"cpu_attention": compiled.why_not(torch.float32) or "compiled"}


def finish_record(record: Record, device: torch.device) -> Record:
    """``record`` with the clocks after the run, and the most that was allocated on a GPU."""
    after: dict[str, Any] = {"clocks_after": clocks_seen(device)}
    if device.type == "cuda":
        after["peak_allocated_mib"] = torch.cuda.max_memory_allocated(device) / 2**20
    return replace(record, device={**record.device, **after})


def _marked(run: Callable[[Any], object], mark: Callable[[], Any]) -> Callable[[Any], object]:
    return partial(_run_marked, run, mark)


def _run_marked(run: Callable[[Any], object], mark: Callable[[], Any], state: Any) -> object:
    with mark():
        return run(state)


def with_times(row: Measurement, timing: Timing, clocks: dict[str, float]) -> Measurement:
    """``row`` with the percentiles of ``timing``."""
    return replace(
        row,
        samples=len(timing.samples_ms),
        p20_ms=timing.percentile(20),
        p50_ms=timing.percentile(50),
        p80_ms=timing.percentile(80),
        p95_ms=timing.percentile(95),
        min_ms=min(timing.samples_ms),
        max_ms=max(timing.samples_ms),
        host_p50_ms=timing.host_p50_ms,
        outliers=outliers(timing),
        repeats_ms=timing.repeats_ms,
        clocks=clocks,
    )


def with_parity(row: Measurement, use: BudgetUse) -> Measurement:
    """``row`` with its error in units of the budget; it fails where that is above 1."""
    units = budget_units(use)
    finite_units = units if units < float("inf") else None
    row = replace(row, budget_units=finite_units, budget_tensor=use.name)
    return row if use.within else replace(row, status="parity failed", reason=str(use))


def with_speed_ups(rows: Sequence[Measurement]) -> list[Measurement]:
    """Each row with the fastest other peer's median over its own, among rows of the same task.

    The faster of a peer's launches counts, so that nobody is compared with a slow way of itself.
    """
    filled = []
    for row in rows:
        others = [
            other.p50_ms
            for other in rows
            if other.p50_ms is not None
            and other.peer != row.peer
            and (other.case, other.precision, other.task) == (row.case, row.precision, row.task)
        ]
        if row.p50_ms is not None and others:
            row = replace(row, speed_up=min(others) / row.p50_ms)
        filled.append(row)
    return filled
