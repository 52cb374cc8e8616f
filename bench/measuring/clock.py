"""Timing of calls side by side: device events on a GPU, wall clock on a CPU.

Every call is sampled once a round, in an order that turns from round to round, on inputs that
rotate, so that drift of the machine and a warm cache favour nobody. On a GPU the last-level cache
is overwritten before each sample. No sample is left out.
"""

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np
import torch

from hmc_fast.bench.measuring.device import l2_bytes

GRAPH_WARM_UP_CALLS = 3
WARM_UP_ROUNDS = 1
"""Whoever times has called everything before, to check its results."""
MIN_ROUNDS = 10
MIN_ROUNDS_OF_SLOW = 3
SLOW_MS = 500.0
"""Calls slower than this get fewer samples."""
FLUSH_FACTOR = 4
"""The flush buffer is this many times the last-level cache."""
HEAD_START_CYCLES = 1_000_000
"""About half a millisecond at 2 GHz: more than planning and launching an operator takes."""
REPEATS = 8
"""Consecutive rounds are pooled into this many repeats, so that drift within a run is seen."""
OUTLIER_SPREADS = 5.0
"""A sample is called an outlier beyond the median by this many times the p20 to p80 spread."""


@dataclass(frozen=True)
class TimedCall:
    """``run(prepare(i))`` on input set ``i``; only ``run`` is timed."""

    run: Callable[[Any], object]
    prepare: Callable[[int], Any] = lambda i: i


@dataclass(frozen=True)
class Timing:
    """Times of single calls in milliseconds, none left out; ``host_ms`` is what the host spent.

    On a GPU the host's time is that of launching, on a CPU it is the call itself.
    """

    samples_ms: tuple[float, ...]
    host_ms: tuple[float, ...] = ()

    def percentile(self, p: float) -> float:
        return float(np.percentile(self.samples_ms, p))

    @property
    def repeats_ms(self) -> list[float]:
        """Medians of consecutive shares of the samples; all calls of a run take turns in each."""
        blocks = np.array_split(self.samples_ms, min(REPEATS, len(self.samples_ms)))
        return [float(np.median(block)) for block in blocks]

    @property
    def host_p50_ms(self) -> float | None:
        """Median of the host's time, None where it was not taken."""
        return float(np.median(self.host_ms)) if self.host_ms else None


class Clock(Protocol):
    """Samples calls; a sample is read after :meth:`synchronize`."""

    def sample(self, run: Callable[[Any], object], state: Any) -> Callable[[], float]:
        """Start a sample; the result tells its milliseconds once synchronised."""
        ...

    def synchronize(self) -> None:
        """Wait until all samples are taken."""
        ...


class WallClock:
    """``time.perf_counter`` around each call, for CPUs."""

    def sample(self, run: Callable[[Any], object], state: Any) -> Callable[[], float]:
        started = time.perf_counter()
        run(state)
        elapsed_ms = (time.perf_counter() - started) * 1e3
        return lambda: elapsed_ms

    def synchronize(self) -> None:
        """Nothing: calls on a CPU return when they are done."""


class DeviceClock:
    """CUDA events around each call, with the last-level cache overwritten before.

    After the flush the device waits for :data:`HEAD_START_CYCLES`, so that the host runs ahead and
    a sample is device time and not the time of launching, which is kept as the host's own.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        elements = FLUSH_FACTOR * l2_bytes(device) // 4
        self._flush = torch.empty(elements, dtype=torch.int32, device=device)

    def sample(self, run: Callable[[Any], object], state: Any) -> Callable[[], float]:
        start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        self._flush.zero_()
        torch.cuda._sleep(HEAD_START_CYCLES)  # type: ignore[no-untyped-call]
        start.record()
        run(state)
        end.record()
        return lambda: float(start.elapsed_time(end))

    def synchronize(self) -> None:
        torch.cuda.synchronize(self.device)


def clock_for(device: torch.device) -> Clock:
    """Events where ``device`` is a GPU, else the wall clock."""
    return DeviceClock(device) if device.type == "cuda" else WallClock()


@dataclass
class TimingResults:
    """Times of the calls that ran, and what the others raised, by name."""

    timings: dict[str, Timing] = field(default_factory=dict)
    failures: dict[str, Exception] = field(default_factory=dict)


def time_side_by_side(
    calls: Mapping[str, TimedCall],
    clock: Clock,
    *,
    input_sets: int,
    seconds: float,
    min_rounds: int = MIN_ROUNDS,
    max_rounds: int = 1000,
) -> TimingResults:
    """Sample all calls in turn; one that raises is dropped and reported, the rest goes on.

    Args:
        calls: what to time, by name; they are called outside of autograd's and the clock's care.
        clock: :func:`clock_for` the device.
        input_sets: round ``r`` uses input set ``r % input_sets``.
        seconds: time to spend on all calls together; a call stops at its equal share of it, so one
            slow call does not cost the others their samples.
        min_rounds: samples that a call gets at least, a slow one :data:`MIN_ROUNDS_OF_SLOW`.
        max_rounds: samples that a call gets at most.
    """
    results = TimingResults()
    active = dict(calls)
    samples: dict[str, list[float]] = {name: [] for name in calls}
    host: dict[str, list[float]] = {name: [] for name in calls}
    spent = dict.fromkeys(calls, 0.0)
    share = seconds / max(1, len(calls))
    rounds = -WARM_UP_ROUNDS
    while active:
        names = list(active)
        turn = rounds % len(names)
        pending: dict[str, Callable[[], float]] = {}
        for name in names[turn:] + names[:turn]:
            started = time.perf_counter()
            try:
                state = active[name].prepare(rounds % input_sets)
                launched = time.perf_counter()
                pending[name] = clock.sample(active[name].run, state)
                if rounds >= 0:
                    host[name].append((time.perf_counter() - launched) * 1e3)
                del state
            except Exception as error:  # whatever a backend raises belongs in its row
                results.failures[name] = error
                del active[name]
            spent[name] += time.perf_counter() - started
        clock.synchronize()
        if rounds >= 0:
            for name, read in pending.items():
                samples[name].append(read())
        else:
            spent = dict.fromkeys(calls, 0.0)
        rounds += 1
        for name in [name for name in active if samples[name]]:
            if _sampled_enough(samples[name], spent[name], share, min_rounds, max_rounds):
                results.timings[name] = Timing(tuple(samples[name]), tuple(host[name]))
                del active[name]
    return results


def _sampled_enough(
    samples: list[float], spent_s: float, share_s: float, min_rounds: int, max_rounds: int
) -> bool:
    least = min(min_rounds, MIN_ROUNDS_OF_SLOW) if min(samples) > SLOW_MS else min_rounds
    # On a GPU the host's time ends before the device's.
    used_s = max(spent_s, sum(samples) / 1e3)
    return len(samples) >= least and (used_s >= share_s or len(samples) >= max_rounds)


def outliers(timing: Timing) -> int:
    """How many samples lie beyond the median by more than the spread explains."""
    spread = timing.percentile(80) - timing.percentile(20)
    limit = timing.percentile(50) + OUTLIER_SPREADS * spread
    return sum(sample > limit for sample in timing.samples_ms)


def capture(call: TimedCall, input_sets: int, device: torch.device) -> TimedCall:
    """A call that replays ``call`` as a CUDA graph, preparation included; a graph an input set.

    Warm-up and capture share a side stream, and the graphs share a memory pool: their results are
    not kept apart. Raises whatever the capture raises for work that a graph cannot hold.
    """
    stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
    stream.wait_stream(torch.cuda.current_stream(device))
    with torch.cuda.stream(stream):
        for i in range(max(GRAPH_WARM_UP_CALLS, input_sets)):
            call.run(call.prepare(i % input_sets))
    torch.cuda.current_stream(device).wait_stream(stream)
    torch.cuda.synchronize(device)
    pool = torch.cuda.graph_pool_handle()
    replays: list[Callable[[], None]] = []
    for i in range(input_sets):
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, pool=pool, stream=stream):
            call.run(call.prepare(i))
        replays.append(graph.replay)
    return TimedCall(run=lambda replay: replay(), prepare=lambda i: replays[i])
