"""The two ceilings, measured in the same run: a large matrix product and a large copy."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

import torch

from hmc_fast.bench.measuring.clock import Clock, TimedCall, time_side_by_side
from hmc_fast.schema import STRICT

MATMUL_SIDE = {"cuda": 8192, "cpu": 2048}
COPY_BYTES = {"cuda": 2**31, "cpu": 2**28}
MATMUL_INPUTS = 2
When = Literal["before", "after"]
"""Of the cases that a run times."""


@dataclass(frozen=True)
class Ceiling:
    """The rates that this machine reached for one dtype, medians; neither is a datasheet's."""

    __pydantic_config__ = STRICT
    precision: str
    matmul_side: int
    matmul_tflops: float
    copy_bytes: int
    copy_gb_per_s: float
    when: When = "before"

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

    The copy counts bytes read plus bytes written.
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

    def copy(_: int) -> None:
        target.copy_(source)

    matmul_ms = _median_ms(multiply, clock, seconds / 2)
    copy_ms = _median_ms(copy, clock, seconds / 2)
    return Ceiling(
        precision=precision,
        matmul_side=side,
        matmul_tflops=2 * side**3 / matmul_ms / 1e9,
        copy_bytes=copy_bytes,
        copy_gb_per_s=2 * copy_bytes / copy_ms / 1e6,
    )


def _median_ms(run: Callable[[int], None], clock: Clock, seconds: float) -> float:
    results = time_side_by_side(
        {"ceiling": TimedCall(run)}, clock, input_sets=MATMUL_INPUTS, min_rounds=5, seconds=seconds
    )
    for error in results.failures.values():
        raise error
    return results.timings["ceiling"].percentile(50)
