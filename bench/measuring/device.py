"""What a measurement ran on: the device, its cache and its clocks."""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from typing import Any

import psutil
import torch

from hmc_fast.bench.measuring.nvml import Watch, nvml_of, summarise
from hmc_fast.environment import cpu_name

DEFAULT_L2_BYTES = 64 * 2**20
"""Taken where the device does not tell the size of its last-level cache."""


@dataclass(frozen=True)
class DeviceFacts:
    """Name and the properties that a reader needs to judge a time."""

    name: str
    kind: str
    architecture: str | None
    multiprocessors: int | None
    memory_mib: int
    l2_mib: float | None

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def device_facts(device: torch.device) -> DeviceFacts:
    """Facts of ``device``."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return DeviceFacts(
            name=properties.name,
            kind="cuda",
            architecture=f"sm_{properties.major}{properties.minor}",
            multiprocessors=properties.multi_processor_count,
            memory_mib=properties.total_memory // 2**20,
            l2_mib=l2_bytes(device) / 2**20,
        )
    memory_mib = psutil.virtual_memory().total // 2**20
    return DeviceFacts(cpu_name(), "cpu", None, None, memory_mib, None)


def l2_bytes(device: torch.device) -> int:
    """Size of the GPU's last-level cache."""
    size = getattr(torch.cuda.get_device_properties(device), "L2_cache_size", 0)
    return int(size) or DEFAULT_L2_BYTES


def clocks_seen(device: torch.device) -> dict[str, float]:
    """Clocks, temperature and power at this moment; what cannot be read is left out.

    On a CPU: its clock and the load average of the last minute, which tells a busy machine.
    """
    if device.type == "cuda":
        nvml = nvml_of(device)
        return {} if nvml is None else summarise([nvml.sample()])
    frequency = psutil.cpu_freq()
    seen = {"load_average": psutil.getloadavg()[0]}
    if frequency is not None and frequency.current:
        seen["cpu_clock_mhz"] = float(frequency.current)
    return seen


@contextmanager
def clocks_during(device: torch.device) -> Iterator[dict[str, float]]:
    """What :func:`clocks_seen` tells, of the time that the block takes; it is filled at the end.

    A GPU is watched meanwhile: its clocks sink within a second once it is idle.
    """
    seen: dict[str, float] = {}
    nvml = nvml_of(device) if device.type == "cuda" else None
    if nvml is None:
        yield seen
        seen.update(clocks_seen(device))
        return
    with Watch(nvml) as watch:
        yield seen
    seen.update(watch.summary())
