"""Blocks so small that a small problem takes many of them."""

import pytest

from hmc_fast.kernels.cpu import backward, blocks, forward, operators, precision
from hmc_fast.kernels.cpu.compiled import attention as compiled


@pytest.fixture(autouse=True)
def _by_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    """In PyTorch, also where the compiled passes would be taken."""
    monkeypatch.setattr(compiled, "takes", lambda q, ks, vs: False)


@pytest.fixture(autouse=True)
def _small_problems_round(monkeypatch: pytest.MonkeyPatch) -> None:
    """On processors that round at all."""
    monkeypatch.setattr(precision, "LEAST_SCORES", 1)


@pytest.fixture(params=[False, True], ids=["MKL", "oneDNN"])
def _products(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Products of fp32 by one library or the other, whatever the processor."""
    monkeypatch.setattr(blocks, "is_wide_amd", lambda: request.param)
    monkeypatch.setattr(blocks, "LEAST_OF_ONEDNN", 1)


@pytest.fixture
def _tiny_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    for module in (forward, operators):
        monkeypatch.setattr(module, "FORWARD", blocks.BlockShape(queries=32, keys=16))
    for module in (backward, operators):
        monkeypatch.setattr(module, "BACKWARD", blocks.BlockShape(queries=16, keys=48))
    monkeypatch.setattr(blocks, "SCORES_AT_ONCE", 1024)
