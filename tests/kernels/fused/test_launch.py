"""Scratch memory of a launch: there in any thread, and nobody else's allocator is touched."""

import threading
from collections.abc import Callable
from typing import Any

import pytest
import triton
from triton.runtime._allocation import _allocator

from hmc_fast.kernels.fused.launch import Launch

SIZE, ALIGNMENT = 384, 128


class Kernel:
    """Asks for scratch memory as Triton's launcher does."""

    def __init__(self) -> None:
        self.scratch: list[Any] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Callable[..., None]:
        return lambda **options: self.scratch.append(_allocator.get()(SIZE, ALIGNMENT, None))


def launch(kernel: Kernel, *, scratch: bool) -> Launch:
    return Launch(kernel, (1,), {}, {}, num_warps=4, num_stages=1, scratch=scratch)


def in_fresh_thread(call: Callable[[], None]) -> list[BaseException]:
    """Autograd runs a backward pass on a thread that shares no context with its caller."""
    errors: list[BaseException] = []

    def target() -> None:
        try:
            call()
        except RuntimeError as error:
            errors.append(error)

    thread = threading.Thread(target=target)
    thread.start()
    thread.join()
    return errors


def test_a_fresh_thread_has_scratch_memory() -> None:
    kernel = Kernel()
    assert in_fresh_thread(launch(kernel, scratch=True).run) == []
    (memory,) = kernel.scratch
    assert memory.numel() >= SIZE
    assert memory.data_ptr() % 64 == 0


def test_without_it_triton_complains() -> None:
    (error,) = in_fresh_thread(launch(Kernel(), scratch=False).run)
    assert "no allocator was set" in str(error)


def test_the_callers_allocator_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    def ours(size: int, alignment: int, stream: int | None) -> Any:
        raise AssertionError

    before = _allocator.get()
    triton.set_allocator(ours)
    try:
        launch(Kernel(), scratch=True).run()
        assert _allocator.get() is ours
    finally:
        triton.set_allocator(before)
