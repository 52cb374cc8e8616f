"""What else the machine did while something was timed: other processes, and stolen time."""

import os
import time
from dataclasses import dataclass

import psutil

STEAL_PERCENT = 2.0
OTHERS_PERCENT = 10.0
"""Of all cores; above either a time was taken under load."""
LEAST_SECONDS = 0.2
"""The kernel counts in steps of 10 ms, too coarse for less."""


@dataclass(frozen=True)
class CpuTimes:
    """Seconds since the start of the machine, summed over cores; ``ours`` are this process's."""

    wall: float
    busy: float
    stolen: float
    ours: float


def cpu_times() -> CpuTimes:
    """Of this moment; ``ours`` has the children that live."""
    machine = psutil.cpu_times()
    busy = machine.user + machine.system + getattr(machine, "nice", 0.0)
    busy += getattr(machine, "irq", 0.0) + getattr(machine, "softirq", 0.0)
    process = psutil.Process()
    ours = sum(process.cpu_times()[:4])  # user, system, and both of children that ended
    for child in process.children(recursive=True):
        try:
            ours += sum(child.cpu_times()[:2])
        except psutil.Error:  # it ended just now
            continue
    return CpuTimes(time.perf_counter(), busy, getattr(machine, "steal", 0.0), ours)


def load_between(before: CpuTimes, after: CpuTimes) -> dict[str, float]:
    """``others_percent`` and ``steal_percent`` of all cores; empty for too short a time."""
    seconds = after.wall - before.wall
    if seconds < LEAST_SECONDS:
        return {}
    capacity = seconds * (os.cpu_count() or 1)
    others = (after.busy - before.busy) - (after.ours - before.ours)
    return {
        "others_percent": max(0.0, 100 * others / capacity),
        "steal_percent": max(0.0, 100 * (after.stolen - before.stolen) / capacity),
    }


def heavier(first: dict[str, float] | None, second: dict[str, float] | None) -> dict[str, float]:
    """The larger of both loads, for a row with figures of two timings."""
    loads = [first or {}, second or {}]
    names = dict.fromkeys(name for load in loads for name in load)
    return {name: max(load.get(name, 0.0) for load in loads) for name in names}


def load_marks(load: dict[str, float] | None) -> list[str]:
    """What of ``load`` is above its limit, as a table shows it."""
    limits = {
        "others_percent": ("other processes", OTHERS_PERCENT),
        "steal_percent": ("steal", STEAL_PERCENT),
    }
    seen = load or {}
    marks = [
        f"{label} {seen[name]:.0f} %"
        for name, (label, limit) in limits.items()
        if seen.get(name, 0.0) > limit
    ]
    attempts = seen.get("attempts", 1)
    return [*marks, f"quietest of {attempts:.0f}"] if marks and attempts > 1 else marks
