"""What a measurement ran on: the device, its cache and its clocks."""

import shutil
import subprocess
from dataclasses import asdict, dataclass
from typing import Any

import psutil
import torch

from hmc_fast.environment import cpu_name

NVIDIA_SMI_FIELDS = {
    "sm_clock_mhz": "clocks.sm",
    "memory_clock_mhz": "clocks.mem",
    "temperature_c": "temperature.gpu",
    "power_w": "power.draw",
}
QUERY_TIMEOUT_S = 10
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
        return _nvidia_smi(device)
    frequency = psutil.cpu_freq()
    seen = {"load_average": psutil.getloadavg()[0]}
    if frequency is not None and frequency.current:
        seen["cpu_clock_mhz"] = float(frequency.current)
    return seen


def _nvidia_smi(device: torch.device) -> dict[str, float]:
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    # CUDA_VISIBLE_DEVICES renumbers GPUs for torch but not for nvidia-smi; the UUID names one.
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    command = [program, f"--query-gpu={','.join(NVIDIA_SMI_FIELDS.values())}"]
    command.append("--format=csv,noheader,nounits")
    if uuid is not None:
        command.append(f"--id=GPU-{str(uuid).removeprefix('GPU-')}")
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=QUERY_TIMEOUT_S)
    except (OSError, subprocess.TimeoutExpired):
        return {}
    return parse_clocks(done.stdout) if done.returncode == 0 else {}


def parse_clocks(text: str) -> dict[str, float]:
    """The first line of ``nvidia-smi``'s answer; a field it does not support is left out."""
    values = (text.strip().splitlines() or [""])[0].split(",")
    seen = {}
    for name, value in zip(NVIDIA_SMI_FIELDS, values, strict=False):
        try:
            seen[name] = float(value)
        except ValueError:
            continue
    return seen
