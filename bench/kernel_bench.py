"""``bench kernels``: every peer on every case, parity first, timed side by side."""

import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
import torch._dynamo
from torch import Tensor

from hmc_fast.bench.case_loop import OVER, run_cases
from hmc_fast.bench.cases import Case, Inputs
from hmc_fast.bench.ceilings import Ceiling
from hmc_fast.bench.device import clocks_seen
from hmc_fast.bench.failures import describe, status_of
from hmc_fast.bench.graphs import capture
from hmc_fast.bench.kernel_parity import BlockTruth, OperatorTruth, truth_of
from hmc_fast.bench.peak_memory import added_peak_mib, release
from hmc_fast.bench.peers import COMPILED, EAGER, TRITON, BoundCall, Peer, Variant
from hmc_fast.bench.peers_block import block_peers
from hmc_fast.bench.peers_flex import FLEX
from hmc_fast.bench.peers_sdpa import SDPA_PEERS
from hmc_fast.bench.profile_record import Launch, Measurement
from hmc_fast.bench.profiler import annotated
from hmc_fast.bench.rows import with_parity, with_speed_ups, with_times
from hmc_fast.bench.timing import Clock, TimedCall, time_side_by_side
from hmc_fast.bench.work import PASSES, Pass, work_of
from hmc_fast.devices import precision_dtype
from hmc_fast.errors import UserError

OPERATOR_PEERS: tuple[Peer, ...] = (TRITON, *SDPA_PEERS, FLEX, COMPILED, EAGER)
PEER_NAMES = tuple(peer.name for peer in OPERATOR_PEERS)
INPUT_SETS = 3
GRAPH_BELOW_MS = 5.0
"""Calls slower than this are not captured: their launches hide behind their work."""


@dataclass(frozen=True)
class KernelBenchOptions:
    """What to measure.

    Args:
        cases: parsed cases.
        precisions: of fp32, bf16 and fp16.
        peers: names of :data:`PEER_NAMES`.
        passes: of forward, backward and both.
        graphs: also time fast calls as CUDA graphs, on a GPU.
        seconds: time for each interleaved measurement.
    """

    cases: tuple[Case, ...]
    precisions: tuple[str, ...]
    peers: tuple[str, ...] = PEER_NAMES
    passes: tuple[Pass, ...] = PASSES
    graphs: bool = True
    seconds: float = 2.0

    def __post_init__(self) -> None:
        for precision in self.precisions:
            precision_dtype(precision)
        for name in self.peers:
            if name not in PEER_NAMES:
                raise UserError(f"unknown backend {name!r}; choose of {', '.join(PEER_NAMES)}")

    def to_json(self) -> dict[str, Any]:
        return {**vars(self), "cases": [case.name for case in self.cases]}

    def plan(self) -> list[tuple[Case, str]]:
        """Cases and precisions in the order in which they are measured."""
        return [(case, precision) for case in self.cases for precision in self.precisions]


def case_peers(case: Case, names: Sequence[str]) -> list[Peer]:
    """The peers of a case's kind that are named, ours first."""
    available = block_peers() if case.kind == "block" else OPERATOR_PEERS
    return [peer for peer in available if peer.name in names]


@dataclass(frozen=True)
class _Ready:
    """A variant that runs a pass within the budget, bound to every input set."""

    row: Measurement
    calls: list[BoundCall]


def run_kernel_bench(
    options: KernelBenchOptions,
    ceilings: dict[str, Ceiling],
    device: torch.device,
    clock: Clock,
    *,
    deadline_s: float = float("inf"),
    on_stage: Callable[[str], object] = lambda stage: None,
) -> Iterator[list[Measurement]]:
    """Measurements case by case; ``ceilings`` are those of each precision.

    A peer that cannot run, breaks, runs out of memory or is wrong is a row with its reason. After
    ``deadline_s`` (of ``time.perf_counter``) the cases that are left are rows that say so.
    """
    benches = (
        _CaseBench(options, case, precision, ceilings[precision], device, clock, on_stage)
        for case, precision in options.plan()
    )
    return run_cases(benches, device, deadline_s)


class _CaseBench:
    """All peers on one case at one precision."""

    def __init__(
        self,
        options: KernelBenchOptions,
        case: Case,
        precision: str,
        ceiling: Ceiling,
        device: torch.device,
        clock: Clock,
        on_stage: Callable[[str], object],
    ) -> None:
        self.options = options
        self.case = case
        self.precision = precision
        self.dtype = precision_dtype(precision)
        self.ceiling = ceiling
        self.device = device
        self.clock = clock
        self.on_stage = on_stage
        self.peers = case_peers(case, options.peers)
        self._variants: dict[str, list[Variant]] = {}
        self._differentiable: dict[str, _Ready] = {}

    def unmeasured(self, status: Any, reason: str) -> list[Measurement]:
        """A row for everything that would have been measured."""
        return [
            replace(self._row(peer, which), status=status, reason=reason)
            for which in self.options.passes
            for peer in self.peers
        ]

    def run(self, deadline_s: float) -> list[Measurement]:
        self.on_stage(f"{self.case.name} {self.precision}: fp64 truth for parity")
        inputs = [self.case.inputs(self.dtype, self.device, seed) for seed in range(INPUT_SETS)]
        truth = truth_of(self.case, inputs[0])
        rows: list[Measurement] = []
        for which in self.options.passes:
            ready: dict[str, _Ready] = {}
            for peer in self.peers:
                if time.perf_counter() > deadline_s:
                    rows.append(replace(self._row(peer, which), status="skipped", reason=OVER))
                    continue
                self.on_stage(f"{self.case.name} {self.precision} {which}: {peer.name}, parity")
                found = self._prepare(peer, which, inputs, truth)
                if isinstance(found, _Ready):
                    ready[peer.name] = found
                else:
                    rows.append(found)
            rows += self._measure(which, ready)
        return with_speed_ups(rows)

    def _row(self, peer: Peer, which: Pass, launch: Launch = "stream") -> Measurement:
        return Measurement(self.case.name, peer.name, self.precision, which, launch, "ok")

    def _prepare(
        self,
        peer: Peer,
        which: Pass,
        inputs: Sequence[Inputs],
        truth: OperatorTruth | BlockTruth,
    ) -> "_Ready | Measurement":
        """The first variant that runs the pass and is right, or a row that says why none is."""
        row = self._row(peer, which)
        known = self._differentiable.get(peer.name)
        if which != "forward" and known is not None:
            return replace(known, row=replace(known.row, what=which))
        reason = peer.why_not(self.case, self.dtype, self.device)
        if reason is not None:
            return replace(row, status="unavailable", reason=reason)
        if peer.name not in self._variants:
            self._variants[peer.name] = peer.variants(self.case)
        failures: list[Measurement] = []
        for variant in self._variants[peer.name]:
            if which not in variant.passes:
                continue
            found = self._try(replace(row, how=variant.how), variant, which, inputs, truth)
            if isinstance(found, _Ready):
                if which != "forward":
                    self._differentiable[peer.name] = found
                return found
            failures.append(found)
        worst = next((f for f in failures if f.status == "parity failed"), failures[-1])
        reasons = dict.fromkeys(f"{f.how}: {f.reason}" for f in failures)
        return replace(worst, reason="; ".join(reasons), how=None)

    def _try(
        self,
        row: Measurement,
        variant: Variant,
        which: Pass,
        inputs: Sequence[Inputs],
        truth: OperatorTruth | BlockTruth,
    ) -> "_Ready | Measurement":
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            try:
                calls = [variant.bind(self.case, own) for own in inputs]
                for call in calls:
                    for leaf in call.leaves:
                        leaf.requires_grad_(which != "forward")
                use = truth.check(_results(calls[0], which))
                for call in calls[1:]:
                    _results(call, which)
            except Exception as error:  # whatever a backend raises belongs in its row
                failed = replace(row, status=status_of(error), reason=describe(error, caught))
            else:
                row = with_parity(row, use)
                return _Ready(row, calls) if row.status == "ok" else row
        release(self.device)
        return failed

    def _measure(self, which: Pass, ready: dict[str, _Ready]) -> list[Measurement]:
        if not ready:
            return []
        name = f"{self.case.name} {self.precision} {which}"
        self.on_stage(f"{name}: timing {len(ready)} peers side by side")
        calls = {
            peer: TimedCall(*_timed(r.calls, which, annotated(f"{name} {peer}")))
            for peer, r in ready.items()
        }
        rows = self._timed_rows(which, {p: r.row for p, r in ready.items()}, calls)
        measured = []
        for row in rows:
            if row.status == "ok":
                row = replace(row, peak_mib=self._peak(calls[row.peer]))
            measured.append(row)
        if not self.options.graphs or self.device.type != "cuda" or which == "backward":
            return measured
        return measured + self._graph_rows(which, measured, calls)

    def _peak(self, call: TimedCall) -> float | None:
        return added_peak_mib(lambda: call.run(call.prepare(0)), self.device)

    def _graph_rows(
        self, which: Pass, measured: list[Measurement], calls: dict[str, TimedCall]
    ) -> list[Measurement]:
        """Rows of fast calls as CUDA graphs; a graph holds a backward pass with its forward."""
        graph_rows: dict[str, Measurement] = {}
        graphs: dict[str, TimedCall] = {}
        failed = []
        for row in measured:
            if row.p50_ms is None or row.p50_ms > GRAPH_BELOW_MS:
                continue
            blank = Measurement(row.case, row.peer, row.precision, which, "graph", "ok")
            blank = replace(blank, how=row.how, budget_units=row.budget_units)
            try:
                graphs[row.peer] = capture(calls[row.peer], INPUT_SETS, self.device)
                graph_rows[row.peer] = replace(blank, budget_tensor=row.budget_tensor)
            except Exception as error:  # a capture fails for many reasons, each the peer's own
                failed.append(replace(blank, status="error", reason=describe(error)))
        return failed + self._timed_rows(which, graph_rows, graphs)

    def _timed_rows(
        self, which: Pass, rows: dict[str, Measurement], calls: dict[str, TimedCall]
    ) -> list[Measurement]:
        if not calls:
            return []
        results = time_side_by_side(
            calls,
            self.clock,
            input_sets=INPUT_SETS,
            seconds=self.options.seconds,
        )
        clocks = clocks_seen(self.device)
        work = work_of(self.case, which, self.dtype)
        flops_per_s, bytes_per_s = self.ceiling.flops_per_s, self.ceiling.bytes_per_s
        timed = []
        for peer, row in rows.items():
            if peer in results.failures:
                error = results.failures[peer]
                timed.append(replace(row, status=status_of(error), reason=describe(error)))
                continue
            row = with_times(row, results.timings[peer], clocks)
            assert row.p50_ms is not None
            floor_ms = work.floor_ms(flops_per_s, bytes_per_s)
            timed.append(
                replace(
                    row,
                    flops=work.flops,
                    bytes=work.bytes,
                    floor_ms=floor_ms,
                    bound=work.bound(flops_per_s, bytes_per_s),
                    tflops=work.flops / row.p50_ms / 1e9,
                    ceiling_share=floor_ms / row.p50_ms,
                )
            )
        return timed


def _results(call: BoundCall, which: Pass) -> list[Tensor]:
    """Outputs and, unless ``which`` is forward, gradients in the layout of the case."""
    if which == "forward":
        with torch.no_grad():
            return call.results(call.forward())
    outs = call.forward()
    gradients = torch.autograd.grad(outs, call.leaves, call.d_outs)
    return call.results([out.detach() for out in outs]) + call.gradients(gradients)


def _timed(
    calls: Sequence[BoundCall], which: Pass, mark: Callable[[], Any]
) -> tuple[Callable[[Any], object], Callable[[int], Any]]:
    """What :class:`TimedCall` takes: ``run`` and ``prepare`` of a pass."""

    def forward(call: BoundCall) -> list[Tensor]:
        with mark(), torch.no_grad():
            return call.forward()

    def backward(state: tuple[BoundCall, list[Tensor]]) -> tuple[Tensor, ...]:
        call, outs = state
        with mark():
            return torch.autograd.grad(outs, call.leaves, call.d_outs)

    def both(call: BoundCall) -> tuple[Tensor, ...]:
        with mark():
            return torch.autograd.grad(call.forward(), call.leaves, call.d_outs)

    if which == "backward":
        return backward, lambda i: (calls[i], calls[i].forward())
    return (forward if which == "forward" else both), lambda i: calls[i]
