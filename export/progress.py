"""The builder's progress monitor, as one percentage that only grows."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import ModuleType
from typing import Any

from hmc_fast.progress import Progress

PERCENT = 100


class BuildProgress:
    """Turns nested phases with their steps into percent, and asks the builder to stop on Ctrl-C.

    Builders call from threads of their own, so every method takes a lock.

    Args:
        report: called with the phase's name, the percent gained, and 100.
    """

    def __init__(self, report: Progress) -> None:
        self.cancelled = False
        self._report = report
        self._lock = threading.Lock()
        self._phases: dict[str, tuple[str | None, int]] = {}
        self._finished_steps: dict[str, int] = {}
        self._percent = 0

    def start(self, name: str, parent: str | None, steps: int) -> None:
        with self._lock:
            self._phases[name] = (parent, max(1, steps))
            self._finished_steps[name] = 0
            self._tell(name)

    def step(self, name: str, step: int) -> bool:
        """False where the builder shall stop."""
        with self._lock:
            self._finished_steps[name] = step + 1
            self._tell(name)
            return not self.cancelled

    def finish(self, name: str) -> None:
        with self._lock:
            parent, _ = self._phases.pop(name)
            self._finished_steps.pop(name)
            if parent is None:
                self._report(name, PERCENT - self._percent, PERCENT)
                self._percent = PERCENT

    def _tell(self, name: str) -> None:
        percent = max(self._percent, int(PERCENT * self._share(name)))
        self._report(name, percent - self._percent, PERCENT)
        self._percent = percent

    def _share(self, name: str) -> float:
        """How much of the whole build is done, seen from this phase upwards."""
        share = 0.0
        current: str | None = name
        while current in self._phases:
            parent, steps = self._phases[current]
            share = min(1.0, (self._finished_steps[current] + share) / steps)
            current = parent
        return share


def progress_monitor(trt: ModuleType, progress: BuildProgress) -> Any:
    """``progress`` as the monitor class of either builder's module."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[misc, name-defined]  # chosen at run time
        def __init__(self) -> None:
            trt.IProgressMonitor.__init__(self)

        def phase_start(self, phase_name: str, parent_phase: str | None, num_steps: int) -> None:
            progress.start(phase_name, parent_phase, num_steps)

        def step_complete(self, phase_name: str, step: int) -> bool:
            return progress.step(phase_name, step)

        def phase_finish(self, phase_name: str) -> None:
            progress.finish(phase_name)

    return Monitor()


@contextmanager
def stops_on_interrupt(progress: BuildProgress) -> Iterator[None]:
    """Ctrl-C asks the builder to stop; an exception inside its callbacks would end the process.

    Raises ``KeyboardInterrupt`` at the end where it was pressed.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return

    def cancel(number: int, frame: object) -> None:
        progress.cancelled = True

    previous = signal.signal(signal.SIGINT, cancel)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, previous)
        if progress.cancelled:
            raise KeyboardInterrupt
