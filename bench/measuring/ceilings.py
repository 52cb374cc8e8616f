"""The two ceilings, measured in the same run: a large matrix product and a large copy."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import torch

from hmc_fast.bench.measuring.clock import Clock, TimedCall, time_side_by_side
from hmc_fast.kernels.cpu.blocks import onednn_linear
from hmc_fast.schema import STRICT

MATMUL_SIDE = {"cuda": 8192, "cpu": 2048}
COPY_BYTES = {"cuda": 2**31, "cpu": 2**28}
MATMUL_INPUTS = 2
When = Literal["before", "after"]
"""Of the cases that a run times."""
BY_PYTORCH, BY_ONEDNN = "torch.mm", "oneDNN"


@dataclass(frozen=True)
class Ceiling:
    """The rates that this machine reached for one dtype, medians; neither is a datasheet's.

    ``matmul_by`` names who multiplied the fastest of those who were tried.
    """

    __pydantic_config__ = STRICT
    precision: str
    matmul_side: int
    matmul_tflops: float
    copy_bytes: int
    copy_gb_per_s: float
    when: When = "before"
    matmul_by: str = BY_PYTORCH

    @property
    def flops_per_s(self) -> float:
        return self.matmul_tflops * 1e12

    @property
    def bytes_per_s(self) -> float:
        return self.copy_gb_per_s * 1e9


def measure_ceiling(
    precision: str,
    dtype: torch.dtype,
    device: torch.device,
    clock: Clock,
    *,
    side: int | None = None,
    copy_bytes: int | None = None,
    seconds: float = 2.0,
) -> Ceiling:
    """Time ``side``³ products of random matrices (zeros run faster) and a device-to-device copy.

    On a CPU oneDNN multiplies as well, which PyTorch brings for its layers: for fp32 PyTorch asks
    MKL, and on some processors that reaches half the rate. The copy counts bytes read plus written.
    """
    side = MATMUL_SIDE[device.type] if side is None else side
    copy_bytes = COPY_BYTES[device.type] if copy_bytes is None else copy_bytes
    a = [torch.randn(side, side, device=device).to(dtype) for _ in range(MATMUL_INPUTS)]
    b = [torch.randn(side, side, device=device).to(dtype) for _ in range(MATMUL_INPUTS)]
    product = torch.empty_like(a[0])
    source = torch.randint(0, 256, (copy_bytes,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)

    def multiply(i: int) -> None:
        torch.mm(a[i], b[i], out=product)

    def multiply_by_onednn(i: int) -> None:
        onednn_linear(a[i], b[i])

    def copy(_: int) -> None:
        target.copy_(source)

    multiplies = {BY_PYTORCH: multiply}
    if device.type == "cpu" and torch.backends.mkldnn.is_available():  # type: ignore[no-untyped-call]
        multiplies[BY_ONEDNN] = multiply_by_onednn
    matmul_ms = _medians_ms(multiplies, clock, seconds / 2)
    copy_ms = _medians_ms({"copy": copy}, clock, seconds / 2)["copy"]
    fastest = min(matmul_ms, key=matmul_ms.__getitem__)
    return Ceiling(
        precision=precision,
        matmul_side=side,
        matmul_tflops=2 * side**3 / matmul_ms[fastest] / 1e9,
        copy_bytes=copy_bytes,
        copy_gb_per_s=2 * copy_bytes / copy_ms / 1e6,
        matmul_by=fastest,
    )


def _medians_ms(
    calls: Mapping[str, Callable[[int], None]], clock: Clock, seconds: float
) -> dict[str, float]:
    """Of every call that can run here; what the first one raises is raised."""
    results = time_side_by_side(
        {name: TimedCall(call) for name, call in calls.items()},
        clock,
        input_sets=MATMUL_INPUTS,
        min_rounds=5,
        seconds=seconds,
    )
    first = next(iter(calls))
    if first in results.failures:
        raise results.failures[first]
    return {name: timing.percentile(50) for name, timing in results.timings.items()}
