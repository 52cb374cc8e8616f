"""Sampling side by side, with a clock whose times are known."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from hmc_fast.bench.measuring import ceilings
from hmc_fast.bench.measuring.ceilings import Ceiling, measure_ceiling
from hmc_fast.bench.measuring.clock import (
    MIN_ROUNDS_OF_SLOW,
    WARM_UP_ROUNDS,
    DeviceClock,
    TimedCall,
    Timing,
    WallClock,
    capture,
    outliers,
    time_side_by_side,
)


def test_repeats_are_medians_of_consecutive_samples() -> None:
    drifting = Timing(tuple(float(i // 10) for i in range(80)))
    assert drifting.repeats_ms == [0.0, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 7.0]
    assert Timing((3.0, 1.0, 2.0)).repeats_ms == [3.0, 1.0, 2.0]


class KnownClock:
    """A sample lasts what its call returns; it can be read only after synchronising."""

    def __init__(self) -> None:
        self.synchronised = True

    def sample(self, run: Callable[[Any], object], state: Any) -> Callable[[], float]:
        self.synchronised = False
        result = run(state)
        assert isinstance(result, float)

        def read() -> float:
            assert self.synchronised
            return result

        return read

    def synchronize(self) -> None:
        self.synchronised = True


def test_calls_take_turns_on_rotating_inputs() -> None:
    order: list[tuple[str, int]] = []

    def call(name: str) -> TimedCall:
        def run(i: int) -> float:
            order.append((name, i))
            return 1.0

        return TimedCall(run)

    results = time_side_by_side(
        {"a": call("a"), "b": call("b")},
        KnownClock(),
        input_sets=3,
        seconds=0,
        min_rounds=4,
    )
    assert results.timings["a"].samples_ms == (1.0,) * 4
    assert len(results.timings["a"].host_ms) == 4
    assert results.timings["a"].host_p50_ms is not None
    timed = order[2 * WARM_UP_ROUNDS :]
    assert [i for _, i in timed] == [0, 0, 1, 1, 2, 2, 0, 0]
    assert [name for name, _ in timed] == ["a", "b", "b", "a", "a", "b", "b", "a"]


def test_only_run_is_timed_and_gets_what_prepare_made() -> None:
    results = time_side_by_side(
        {"a": TimedCall(lambda state: float(state), lambda i: 10 + i)},
        KnownClock(),
        input_sets=2,
        seconds=0,
        min_rounds=3,
    )
    assert results.timings["a"].samples_ms == (10.0, 11.0, 10.0)


def test_one_that_raises_is_reported_and_the_rest_goes_on() -> None:
    calls = {"count": 0}

    def breaks(_: int) -> float:
        calls["count"] += 1
        if calls["count"] == 3:
            raise torch.OutOfMemoryError("no memory left")
        return 1.0

    results = time_side_by_side(
        {"breaks": TimedCall(breaks), "works": TimedCall(lambda i: 2.0)},
        KnownClock(),
        input_sets=1,
        seconds=0,
        min_rounds=5,
    )
    assert set(results.failures) == {"breaks"}
    assert {n: t.samples_ms for n, t in results.timings.items()} == {"works": (2.0,) * 5}


def test_a_slow_call_costs_the_fast_one_no_samples() -> None:
    results = time_side_by_side(
        {"slow": TimedCall(lambda i: 900.0), "fast": TimedCall(lambda i: 1.0)},
        KnownClock(),
        input_sets=1,
        seconds=0.1,
        min_rounds=10,
        max_rounds=40,
    )
    assert len(results.timings["slow"].samples_ms) == MIN_ROUNDS_OF_SLOW
    assert len(results.timings["fast"].samples_ms) == 40


def test_the_wall_clock_tells_milliseconds() -> None:
    import time

    read = WallClock().sample(lambda _: time.sleep(0.02), None)
    assert 20 <= read() < 2000


def test_outliers_are_counted_and_kept() -> None:
    timing = Timing((1.0, 1.01, 1.02, 1.0, 1.01, 9.0))
    assert outliers(timing) == 1
    assert max(timing.samples_ms) == 9.0


def small_ceiling(clock: WallClock) -> Ceiling:
    """Of 64³ products and a copy of a MiB."""
    cpu = torch.device("cpu")
    return measure_ceiling("fp32", torch.float32, cpu, clock, side=64, copy_bytes=2**20, seconds=0)


def test_ceilings_are_rates_of_the_clock() -> None:
    class OneMillisecond(WallClock):
        def sample(self, run: Callable[[Any], object], state: Any) -> Callable[[], float]:
            run(state)
            return lambda: 1.0

    ceiling = small_ceiling(OneMillisecond())
    assert ceiling.flops_per_s == pytest.approx(2 * 64**3 * 1e3)
    assert ceiling.bytes_per_s == pytest.approx(2 * 2**20 * 1e3)


@pytest.mark.parametrize("slow", ["torch.mm", "oneDNN"])
def test_the_faster_product_is_the_ceiling(monkeypatch: pytest.MonkeyPatch, slow: str) -> None:
    class Counted(WallClock):
        """A sample takes 3 ms where ``slow`` multiplied, else 1 ms."""

        def sample(self, run: Callable[[Any], object], state: Any) -> Callable[[], float]:
            called.clear()
            run(state)
            ms = 3.0 if slow in called else 1.0
            return lambda: ms

    called: list[str] = []
    by_torch = torch.mm

    def mm(*args: Any, **options: Any) -> torch.Tensor:
        called.append("torch.mm")
        return by_torch(*args, **options)

    def linear(x: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
        called.append("oneDNN")
        return by_torch(x, weight.T)

    monkeypatch.setattr(torch, "mm", mm)
    monkeypatch.setattr(ceilings, "onednn_linear", linear)
    ceiling = small_ceiling(Counted())
    assert ceiling.matmul_by == ({"torch.mm", "oneDNN"} - {slow}).pop()
    assert ceiling.flops_per_s == pytest.approx(2 * 64**3 * 1e3)


def test_a_product_that_cannot_run_here_is_no_ceiling(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(*_: object) -> torch.Tensor:
        raise RuntimeError("no such product")

    monkeypatch.setattr(ceilings, "onednn_linear", absent)
    assert small_ceiling(WallClock()).matmul_by == "torch.mm"


def test_the_device_clock_flushes_gives_the_host_a_start_then_brackets_the_call(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    order: list[str] = []

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            order.append("event")

        def elapsed_time(self, end: "Event") -> float:
            return 1.5

    class Flush:
        def zero_(self) -> None:
            order.append("flush")

    monkeypatch.setattr("hmc_fast.bench.measuring.clock.l2_bytes", lambda device: 1024)
    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "_sleep", lambda cycles: order.append("sleep"))
    clock = DeviceClock(torch.device("cpu"))
    monkeypatch.setattr(clock, "_flush", Flush())
    read = clock.sample(order.append, "call")
    assert order == ["flush", "sleep", "event", "call", "event"]
    assert read() == 1.5


@pytest.mark.gpu
def test_device_events_see_the_work_and_graphs_replay_it() -> None:
    device = torch.device("cuda")
    a = [torch.randn(2048, 2048, device=device) for _ in range(2)]
    out = torch.empty_like(a[0])

    def multiply(i: int) -> None:
        torch.mm(a[i], a[i], out=out)

    call = TimedCall(multiply)
    graphed = capture(call, 2, device)
    out.zero_()
    graphed.run(graphed.prepare(1))
    torch.cuda.synchronize()
    assert torch.allclose(out, a[1] @ a[1])
    results = time_side_by_side(
        {"stream": call, "graph": graphed}, DeviceClock(device), input_sets=2, seconds=0.2
    )
    assert not results.failures
    # 17 GFLOP at no more than 1000 TFLOP/s.
    assert all(timing.percentile(50) > 0.017 for timing in results.timings.values())
