"""CPU-side micro-benchmarks: ``pytest --benchmark-only`` for steady figures."""

import torch
from pytest_benchmark.fixture import BenchmarkFixture

from hmc_fast.kernels import attention, reference


def test_dispatch_overhead(benchmark: BenchmarkFixture) -> None:
    q = torch.randn(1, 1, 1, 16)
    out, lse = benchmark(attention, q, q, q)
    assert torch.equal(out, q)
    assert lse.shape == (1, 1, 1)


def test_reference_attention_of_a_c4_stage(benchmark: BenchmarkFixture) -> None:
    q, v = torch.randn(1, 196, 4, 64), torch.randn(1, 196, 4, 256)
    out, _ = benchmark(reference.attention, q, q, v, 0.125)
    assert out.shape == v.shape
