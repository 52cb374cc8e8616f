"""Devices and precisions by name, the same wherever a model runs."""

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
