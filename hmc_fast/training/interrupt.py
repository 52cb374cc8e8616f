"""Ctrl-C that cannot get lost.

An interrupt that arrives while a checkpoint is written is raised inside a callback from C++, which
drops it. The signal is therefore remembered, and raised again at the next training step.
"""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import lightning.pytorch as pl


class InterruptGuard(pl.Callback):
    """Raises ``KeyboardInterrupt`` after the step in which an interrupt was dropped."""

    def __init__(self) -> None:
        self.interrupted = False

    @contextmanager
    def watch(self) -> Iterator[None]:
        """Remember interrupts within the block; in threads other than the main one, do nothing."""
        if threading.current_thread() is not threading.main_thread():
            yield
            return
        previous = signal.signal(signal.SIGINT, self._remember)
        try:
            yield
        finally:
            signal.signal(signal.SIGINT, previous)

    def _remember(self, number: int, frame: FrameType | None) -> None:
        self.interrupted = True
        raise KeyboardInterrupt

    def on_train_batch_end(self, *unused: Any, **unused_by_name: Any) -> None:
        if self.interrupted:
            raise KeyboardInterrupt
