"""An interrupt that something drops is raised again at the next step."""

import os
import signal
import threading

import pytest

from hmc_fast.training.interrupt import InterruptGuard


def test_a_dropped_interrupt_comes_back_at_the_next_step() -> None:
    guard = InterruptGuard()
    before = signal.getsignal(signal.SIGINT)
    guard.on_train_batch_end()
    with guard.watch():
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            guard.on_train_batch_end()
    assert signal.getsignal(signal.SIGINT) is before


def test_other_threads_leave_the_signal_alone() -> None:
    errors = []

    def work() -> None:
        try:
            with InterruptGuard().watch():
                pass
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    assert not errors
