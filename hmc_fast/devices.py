"""Devices, their memory and precisions by name, the same wherever a model runs."""

import ctypes
from contextlib import suppress

import torch

from hmc_fast.errors import UserError

PRECISIONS: dict[str, torch.dtype] = {
    "fp32": torch.float32,
    "bf16": torch.bfloat16,
    "fp16": torch.float16,
}
"""Autocast dtypes by name; ``fp32`` is no autocast."""


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
