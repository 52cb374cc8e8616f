"""Timing: interleaved rounds over all candidates, so that drift of the machine hits all alike."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

WARM_UP_CALLS = 2


@dataclass(frozen=True)
class Timing:
    """Wall or device times of single calls in milliseconds, none left out."""

    samples_ms: tuple[float, ...]

    def percentile(self, p: float) -> float:
        return float(np.percentile(self.samples_ms, p))


def time_interleaved(
    calls: Mapping[str, Callable[[Tensor], object]],
    inputs: Sequence[Tensor],
    *,
    min_rounds: int,
    seconds: float,
) -> dict[str, Timing]:
    """Time every call once a round, over rotating inputs, until both limits are reached.

    Args:
        calls: what to time, by name.
        inputs: batches on the device; round ``r`` uses ``inputs[r % len(inputs)]``.
        min_rounds: samples a call gets at least.
        seconds: rounds go on until this much time has passed.
    """
    device = inputs[0].device
    for call in calls.values():
        for i in range(WARM_UP_CALLS):
            call(inputs[i % len(inputs)])
    samples: dict[str, list[float]] = {name: [] for name in calls}
    started = time.perf_counter()
    rounds = 0
    while rounds < min_rounds or time.perf_counter() - started < seconds:
        batch = inputs[rounds % len(inputs)]
        for name, call in calls.items():
            samples[name].append(_time_once(call, batch, device))
        rounds += 1
    return {name: Timing(tuple(values)) for name, values in samples.items()}


def _time_once(call: Callable[[Tensor], object], batch: Tensor, device: torch.device) -> float:
    if device.type == "cuda":
        start = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        end = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        torch.cuda.synchronize(device)
        start.record()
        call(batch)
        end.record()
        torch.cuda.synchronize(device)
        return float(start.elapsed_time(end))
    start_s = time.perf_counter()
    call(batch)
    return (time.perf_counter() - start_s) * 1e3
