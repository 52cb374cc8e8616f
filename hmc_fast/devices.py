"""Devices, their memory and precisions by name, the same wherever a model runs."""

import ctypes
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import torch

from hmc_fast.errors import UserError

PRECISIONS: dict[str, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
"""Autocast dtypes by name; ``fp32`` is no autocast."""


_TRIM_THRESHOLD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -3, -4
_KEEP = ((_MMAP_MAX, 0), (_TRIM_THRESHOLD, -1))
_GIVE_BACK = ((_MMAP_MAX, 2**16), (_MMAP_THRESHOLD, 2**25), (_TRIM_THRESHOLD, 2**26))
"""Options of ``mallopt(3)``. Those to give back are where glibc's own tuning ends up."""


def precision_dtype(name: str) -> torch.dtype:
    """Raises :class:`UserError` for an unknown name."""
    if name not in PRECISIONS:
        raise UserError(f"unknown precision {name!r}; choose one of {', '.join(PRECISIONS)}")
    return PRECISIONS[name]


def autocast(device: torch.device, precision: str) -> torch.autocast:
    """Context in which a model runs at the named precision on ``device``."""
    dtype = precision_dtype(precision)
    enabled = dtype != torch.float32
    return torch.autocast(device.type, dtype if enabled else torch.bfloat16, enabled=enabled)


def device_count() -> int:
    """How many processes can train side by side here: one a GPU, or one a core without any."""
    return torch.cuda.device_count() or os.cpu_count() or 1


def default_device() -> torch.device:
    """The current GPU where there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def return_free_memory() -> None:
    """Give the CPU memory that was freed back to the system, where the C library can (glibc).

    Its allocator keeps what tensors of up to 32 MiB leave behind: after a model was copied, that
    is more than the model.
    """
    with suppress(OSError, AttributeError):
        ctypes.CDLL("libc.so.6").malloc_trim(0)


@contextmanager
def freed_memory_kept() -> Iterator[None]:
    """Inside, memory of freed CPU tensors waits for the next ones, where the C library can (glibc).

    Its allocator gives freed tensors of more than 32 MiB back to the system, which clears memory
    page by page when it hands it out again. A training step frees all that it took, and pays for
    that anew every time. At the end everything is given back. Of the whole process, so for a long
    piece of work, not for a call.
    """
    try:
        set_option = ctypes.CDLL("libc.so.6").mallopt
    except (OSError, AttributeError):
        yield
        return
    for option, value in _KEEP:
        set_option(option, value)
    try:
        yield
    finally:
        for option, value in _GIVE_BACK:
            set_option(option, value)
        return_free_memory()


def device_by_name(name: str) -> torch.device:
    """``auto`` for :func:`default_device`, ``cpu``, ``cuda`` or a GPU such as ``cuda:1``.

    Raises :class:`UserError` for any other name, or a GPU that is not there.
    """
    if name == "auto":
        return default_device()
    if name == "cpu":
        return torch.device("cpu")
    kind, _, number = name.partition(":")
    if kind != "cuda" or not (name == "cuda" or number.isdecimal()):
        raise UserError(f"unknown device {name!r}; choose auto, cpu, cuda or cuda:NUMBER")
    count = torch.cuda.device_count()
    if int(number or 0) >= count:
        raise UserError(f"device {name}: this machine has {count} GPUs that PyTorch can use")
    return torch.device(name)
