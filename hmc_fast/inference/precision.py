"""Whether a precision pays on the processor at hand."""

import time

import torch

from hmc_fast.devices import precision_dtype

PROBE_SIDE = 768
PROBE_PRODUCTS = 4


def slower_precision(precision: str, device: torch.device) -> str | None:
    """One line where matrix products at ``precision`` are slower than in fp32 here, else None.

    Timed for some 0.1 s, on CPUs only: not every processor multiplies bf16 or fp16 faster.
    """
    if device.type != "cpu" or precision == "fp32":
        return None
    low, full = _tflops(precision_dtype(precision)), _tflops(torch.float32)
    if low >= full:
        return None
    return (
        f"matrix products run at {low:.2f} TFLOP/s in {precision} on this processor, at {full:.2f} "
        "in fp32: --precision fp32 is faster"
    )


def _tflops(dtype: torch.dtype) -> float:
    """The best of a few products of :data:`PROBE_SIDE`² matrices."""
    a, b = (torch.rand(PROBE_SIDE, PROBE_SIDE).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(PROBE_PRODUCTS):
        start = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - start)
    return 2 * PROBE_SIDE**3 / min(seconds) / 1e12
