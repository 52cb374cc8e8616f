"""``bench model``: whole models, inference and training step, every implementation side by side."""

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch._dynamo
from torch import Tensor

from hmc_fast.bench.case_loop import OVER, run_cases
from hmc_fast.bench.device import clocks_seen
from hmc_fast.bench.failures import describe, status_of
from hmc_fast.bench.graphs import capture
from hmc_fast.bench.model_cases import ModelCase
from hmc_fast.bench.model_truth import InferenceTruth, TrainingTruth
from hmc_fast.bench.model_variants import (
    IMPLEMENTATION_NAMES,
    IMPLEMENTATIONS,
    Implementation,
    TrainingStep,
    copy_of,
    model_bytes,
    reference_model,
)
from hmc_fast.bench.peak_memory import added_peak_mib, release
from hmc_fast.bench.profile_record import Measurement
from hmc_fast.bench.profiler import annotated
from hmc_fast.bench.rows import with_parity, with_speed_ups, with_times
from hmc_fast.bench.timing import Clock, TimedCall, time_side_by_side
from hmc_fast.devices import precision_dtype
from hmc_fast.errors import UserError

INPUT_SETS = 3
GRAPH_BELOW_MS = 20.0
"""Slower inferences are not captured: their launches hide behind their work."""


@dataclass(frozen=True)
class ModelBenchOptions:
    """What to measure; ``seconds`` is the time for each interleaved measurement."""

    cases: tuple[ModelCase, ...]
    precision: str
    implementations: tuple[str, ...] = IMPLEMENTATION_NAMES
    graphs: bool = True
    seconds: float = 4.0

    def __post_init__(self) -> None:
        precision_dtype(self.precision)
        for name in self.implementations:
            if name not in IMPLEMENTATION_NAMES:
                raise UserError(
                    f"unknown implementation {name!r}; choose of {', '.join(IMPLEMENTATION_NAMES)}"
                )

    def to_json(self) -> dict[str, Any]:
        cases = [f"{case.name}/{case.what}" for case in self.cases]
        return {**vars(self), "cases": cases}


@dataclass(frozen=True)
class _Ready:
    """An implementation that is right on a case, and what it holds beside its calls, in bytes."""

    row: Measurement
    run: Callable[[Any], object]
    own_bytes: Callable[[], int]


def run_model_bench(
    options: ModelBenchOptions,
    device: torch.device,
    clock: Clock,
    *,
    deadline_s: float = float("inf"),
    on_stage: Callable[[str], object] = lambda stage: None,
) -> Iterator[list[Measurement]]:
    """Measurements case by case; failures and a passed deadline are rows, as for the operators."""
    benches = (_CaseBench(options, case, device, clock, on_stage) for case in options.cases)
    return run_cases(benches, device, deadline_s)


class _CaseBench:
    """All implementations of one case."""

    def __init__(
        self,
        options: ModelBenchOptions,
        case: ModelCase,
        device: torch.device,
        clock: Clock,
        on_stage: Callable[[str], object],
    ) -> None:
        self.options = options
        self.case = case
        self.dtype = precision_dtype(options.precision)
        self.device = device
        self.clock = clock
        self.on_stage = on_stage
        self.label = f"{case.name} {case.what}"
        self.implementations = [i for i in IMPLEMENTATIONS if i.name in options.implementations]

    def unmeasured(self, status: Any, reason: str) -> list[Measurement]:
        """A row for everything that would have been measured."""
        rows = [self._row(implementation) for implementation in self.implementations]
        return [replace(row, status=status, reason=reason) for row in rows]

    def _row(self, implementation: Implementation) -> Measurement:
        name, precision = implementation.name, self.options.precision
        row = Measurement(self.case.name, name, precision, self.case.what, "stream", "ok")
        return replace(row, how=implementation.about)

    def run(self, deadline_s: float) -> list[Measurement]:
        self.on_stage(f"{self.label}: fp64 truth for parity")
        batches = [self._batch(seed) for seed in range(INPUT_SETS)]
        parameters = reference_model(self.case.model)
        truth: InferenceTruth | TrainingTruth
        if self.case.what == "inference":
            truth = InferenceTruth(parameters, batches[0][0])
        else:
            truth = TrainingTruth(parameters, batches[0], self.dtype)
        rows: list[Measurement] = []
        ready: dict[str, _Ready] = {}
        for implementation in self.implementations:
            row = self._row(implementation)
            reason = implementation.why_not(self.case, self.dtype, self.device)
            if reason is not None:
                rows.append(replace(row, status="unavailable", reason=reason))
            elif time.perf_counter() > deadline_s:
                rows.append(replace(row, status="skipped", reason=OVER))
            else:
                self.on_stage(f"{self.label}: {implementation.name}, parity")
                found = self._prepare(row, implementation, parameters, batches, truth)
                if isinstance(found, _Ready):
                    ready[implementation.name] = found
                else:
                    rows.append(found)
        return with_speed_ups(rows + self._measure(ready, batches))

    def _batch(self, seed: int) -> tuple[Tensor, Tensor]:
        generator = torch.Generator(self.device).manual_seed(seed)
        shape = (self.case.batch, 3, self.case.size, self.case.size)
        images = torch.randn(shape, generator=generator, device=self.device)
        labels = torch.arange(self.case.batch, device=self.device) % 2
        inference = self.case.what == "inference"
        return (images.to(self.dtype) if inference else images), labels

    def _prepare(
        self,
        row: Measurement,
        implementation: Implementation,
        parameters: Any,
        batches: Sequence[tuple[Tensor, Tensor]],
        truth: InferenceTruth | TrainingTruth,
    ) -> _Ready | Measurement:
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # compilers and exporters advise at length
                model = copy_of(parameters, implementation.backend).to(self.device)
                if isinstance(truth, InferenceTruth):
                    model = model.to(self.dtype)
                    call = implementation.build(model, batches[0][0])
                    row = with_parity(row, truth.check(call))
                    held = model_bytes(model)
                    ready = _Ready(row, _inference(call), lambda: held)
                else:
                    step = TrainingStep(
                        model.train(), implementation.build(model, batches[0][0]), self.dtype
                    )
                    row = with_parity(row, truth.check(step))
                    step(batches[0])
                    ready = _Ready(row, step, step.own_bytes)
        except Exception as error:  # whatever a backend raises belongs in its row
            failed = replace(row, status=status_of(error), reason=describe(error))
        else:
            return ready if row.status == "ok" else row
        release(self.device)
        return failed

    def _measure(
        self, ready: dict[str, _Ready], batches: Sequence[tuple[Tensor, Tensor]]
    ) -> list[Measurement]:
        if not ready:
            return []
        self.on_stage(f"{self.label}: timing {len(ready)} implementations side by side")
        calls = {}
        for name, prepared in ready.items():
            marked = _marked(prepared.run, annotated(f"{self.label} {name}"))
            calls[name] = TimedCall(marked, lambda i: batches[i])
        rows = self._timed_rows({name: r.row for name, r in ready.items()}, calls)
        measured = [
            replace(row, peak_mib=self._peak_mib(ready[row.peer], batches[0]))
            if row.status == "ok"
            else row
            for row in rows
        ]
        if not self.options.graphs or self.device.type != "cuda" or self.case.what == "training":
            return measured
        return measured + self._graph_rows(measured, calls)

    def _peak_mib(self, prepared: _Ready, batch: tuple[Tensor, Tensor]) -> float | None:
        added = added_peak_mib(lambda: prepared.run(batch), self.device)
        if added is None:
            return None
        images = batch[0].numel() * batch[0].element_size()
        return added + (prepared.own_bytes() + images) / 2**20

    def _graph_rows(
        self, measured: Sequence[Measurement], calls: dict[str, TimedCall]
    ) -> list[Measurement]:
        rows: dict[str, Measurement] = {}
        graphs: dict[str, TimedCall] = {}
        failed = []
        for row in measured:
            if row.p50_ms is None or row.p50_ms > GRAPH_BELOW_MS or row.peer == "onnxruntime":
                continue
            blank = Measurement(
                row.case, row.peer, row.precision, row.what, "graph", "ok", how=row.how
            )
            try:
                graphs[row.peer] = capture(calls[row.peer], INPUT_SETS, self.device)
            except Exception as error:  # a capture fails for many reasons, each its own
                failed.append(replace(blank, status="error", reason=describe(error)))
            else:
                units, tensor = row.budget_units, row.budget_tensor
                rows[row.peer] = replace(blank, budget_units=units, budget_tensor=tensor)
        return failed + self._timed_rows(rows, graphs)

    def _timed_rows(
        self, rows: dict[str, Measurement], calls: dict[str, TimedCall]
    ) -> list[Measurement]:
        if not calls:
            return []
        results = time_side_by_side(
            calls, self.clock, input_sets=INPUT_SETS, seconds=self.options.seconds
        )
        clocks = clocks_seen(self.device)
        timed = []
        for name, row in rows.items():
            if name in results.failures:
                error = results.failures[name]
                timed.append(replace(row, status=status_of(error), reason=describe(error)))
                continue
            row = with_times(row, results.timings[name], clocks)
            assert row.p50_ms is not None
            timed.append(replace(row, throughput_per_s=self.case.batch / row.p50_ms * 1e3))
        return timed


def _inference(call: Callable[[Tensor], Tensor]) -> Callable[[tuple[Tensor, Tensor]], Tensor]:
    def infer(batch: tuple[Tensor, Tensor]) -> Tensor:
        # Not inference_mode: a graph's replays and compiled code meet plain tensors elsewhere.
        with torch.no_grad():
            return call(batch[0])

    return infer


def _marked(run: Callable[[Any], object], mark: Callable[[], Any]) -> Callable[[Any], object]:
    def marked(batch: Any) -> object:
        with mark():
            return run(batch)

    return marked
