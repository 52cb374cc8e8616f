"""How much memory a call adds at its highest: allocated on a GPU, resident on a CPU."""

import ctypes
import gc
from collections.abc import Callable
from contextlib import suppress

import psutil
import torch

from hmc_fast.bench.memory import reset_resident_peak, resident_peak_mib


def added_peak_mib(call: Callable[[], object], device: torch.device) -> float | None:
    """Peak during ``call`` over what was in use before it, in MiB.

    On a CPU it is the rise of the resident size, which memory that the allocator kept from earlier
    calls lowers; so that is returned to the system first. None where the system tells no peak.
    """
    gc.collect()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return float(torch.cuda.max_memory_allocated(device) - before) / 2**20
    with suppress(OSError, AttributeError):  # other C libraries than glibc have no malloc_trim
        ctypes.CDLL("libc.so.6").malloc_trim(0)
    try:
        reset_resident_peak()
        before_mib = psutil.Process().memory_info().rss / 2**20
        call()
        return max(0.0, resident_peak_mib() - float(before_mib))
    except OSError:
        return None


def release(device: torch.device) -> None:
    """Give back what earlier calls left in caches, after running out of memory for example."""
    gc.collect()
    if device.type == "cuda":
        with suppress(RuntimeError):  # a broken context has told of it already
            torch.cuda.empty_cache()
