"""CPU-side micro-benchmarks: ``pytest --benchmark-only`` for steady figures."""

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

from hmc_fast.kernels import attention, reference


def test_dispatch_overhead(benchmark: BenchmarkFixture) -> None:
    q = torch.randn(1, 1, 1, 16)
    out, lse = benchmark(attention, q, q, q)
    torch.testing.assert_close(out, q)
    assert lse.shape == (1, 1, 1)


@pytest.mark.parametrize("backend", ["reference", "cpu"])
def test_attention_of_a_c4_stage(benchmark: BenchmarkFixture, backend: str) -> None:
    q, v = torch.randn(1, 196, 4, 64), torch.randn(1, 196, 4, 256)
    out, _ = benchmark(attention, q, q, v, backend=backend)
    torch.testing.assert_close(out, reference.attention(q, q, v, 0.125)[0])
