"""Peak memory: allocated on a GPU, resident (``VmHWM``) on a CPU.

It is either what a call adds to what was in use, or all that a process of its own holds during the
call.
"""

import gc
import subprocess
import sys
from collections.abc import Callable, Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import torch

from hmc_fast.devices import return_free_memory

_STATUS = Path("/proc/self/status")
_CLEAR_REFS = Path("/proc/self/clear_refs")
_RESET_PEAK = "5"
TIMEOUT_S = 1800


class MemoryProbeError(RuntimeError):
    """The probe process failed; the message is its last line."""


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
    return_free_memory()
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


def process_peak_mib(call: Callable[[], object], device: torch.device) -> float:
    """Peak of this process during the second of two calls, with all that it holds, in MiB."""
    call()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
        torch.cuda.reset_peak_memory_stats(device)
        call()
        torch.cuda.synchronize(device)
        return torch.cuda.max_memory_allocated(device) / 2**20
    reset_resident_peak()
    call()
    return resident_peak_mib()


def child_peak_mib(module: str, arguments: Sequence[str]) -> float:
    """The figure that a fresh process prints last, which runs ``module``.

    Raises :class:`MemoryProbeError` where that process fails, for want of memory for example.
    """
    # -P keeps a source checkout in the working directory from shadowing the installed package.
    command = [sys.executable, "-P", "-m", module, *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=TIMEOUT_S)
    except subprocess.TimeoutExpired:
        raise MemoryProbeError(f"memory probe took longer than {TIMEOUT_S} s") from None
    except OSError as error:
        raise MemoryProbeError(f"memory probe could not start ({error.strerror})") from None
    if done.returncode != 0:
        last = (done.stderr.strip().splitlines() or [f"killed with code {done.returncode}"])[-1]
        raise MemoryProbeError(f"memory probe failed: {last}")
    return float(done.stdout.strip().splitlines()[-1])


def reset_resident_peak() -> None:
    """Start a new ``VmHWM``. Raises ``OSError`` where the system has none."""
    _CLEAR_REFS.write_text(_RESET_PEAK)


def resident_peak_mib() -> float:
    """Highest resident size of this process since :func:`reset_resident_peak`, in MiB."""
    for line in _STATUS.read_text().splitlines():
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) / 2**10
    raise MemoryProbeError(f"{_STATUS} names no VmHWM: peak memory needs Linux")
