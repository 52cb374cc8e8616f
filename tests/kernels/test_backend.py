"""Backends are chosen as documented, never fall back, and a choice stays in its thread."""

from threading import Barrier, Thread

import pytest
import torch
from torch import Tensor

from hmc_fast.kernels import AttentionProblem, attention, resolve_backend, use_backend
from hmc_fast.kernels.backend import BackendUnavailableError


def tensors() -> dict[str, Tensor]:
    shapes = {"q": (2, 5, 3, 16), "k": (2, 7, 3, 16), "v": (2, 7, 3, 32)}
    return {name: torch.randn(shape) for name, shape in shapes.items()}


def chosen() -> str:
    """What runs a call that names no backend, or why it cannot."""
    problem = AttentionProblem(2, 5, 3, (7,), (32,), 16, torch.float32)
    try:
        return resolve_backend("auto", problem).why
    except BackendUnavailableError as error:
        return str(error)


def test_an_explicit_backend_never_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    good = tensors()
    with pytest.raises(BackendUnavailableError, match="chosen by argument.*compute capability"):
        attention(**good, backend="triton")
    with use_backend("triton"):
        with pytest.raises(BackendUnavailableError, match="chosen by use_backend"):
            attention(**good)
        attention(**good, backend="reference")
    monkeypatch.setenv("HMC_FAST_BACKEND", "triton")
    with pytest.raises(BackendUnavailableError, match="chosen by HMC_FAST_BACKEND"):
        attention(**good)
    with use_backend("reference"):
        attention(**good)
    monkeypatch.setenv("HMC_FAST_BACKEND", "cudnn")
    with pytest.raises(ValueError, match="HMC_FAST_BACKEND is 'cudnn'"):
        attention(**good)
    with pytest.raises(ValueError, match="backend is 'flash'; it must be one of"):
        attention(**good, backend="flash")


def test_auto_says_why() -> None:
    problem = AttentionProblem(2, 5, 3, (7,), (32,), 16, torch.float32)
    choice = resolve_backend("auto", problem)
    assert choice.name == "reference"
    assert "need a GPU" in choice.why


def test_an_inner_choice_ends_with_its_block() -> None:
    with use_backend("triton"):
        with use_backend("reference"):
            assert chosen() == "chosen by use_backend"
            with pytest.raises(KeyError), use_backend("triton"):
                raise KeyError
            assert chosen() == "chosen by use_backend"
        assert "backend 'triton' (chosen by use_backend) cannot run" in chosen()
    assert chosen().startswith("auto")


def test_threads_choose_at_the_same_time() -> None:
    """Both are inside their blocks when each calls, and the first leaves while the second is in."""
    seen: dict[str, list[str]] = {"reference": [], "triton": [], "none": []}
    barrier = Barrier(3, timeout=20)

    def choose(backend: str) -> None:
        with use_backend(backend):
            barrier.wait()
            seen[backend].append(chosen())
            barrier.wait()
            if backend == "triton":
                barrier.wait()
                seen[backend].append(chosen())
        if backend == "reference":
            seen[backend].append(chosen())
            barrier.wait()

    def choose_nothing() -> None:
        for _ in range(3):
            barrier.wait()
            seen["none"].append(chosen())

    threads = [Thread(target=choose, args=(name,)) for name in ("reference", "triton")]
    threads.append(Thread(target=choose_nothing))
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
    unavailable = "backend 'triton' (chosen by use_backend) cannot run"
    assert seen["reference"][0] == "chosen by use_backend"
    assert seen["reference"][1].startswith("auto")
    assert [answer.startswith(unavailable) for answer in seen["triton"]] == [True, True]
    assert [answer.startswith("auto") for answer in seen["none"]] == [True, True, True]
