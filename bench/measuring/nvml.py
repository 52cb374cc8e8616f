"""Clocks, power and reasons for slowing down, read from NVIDIA's management library while timing.

``nvidia-smi`` reads the same library, but takes longer to start than many a measurement. Function
names and constants: NVML API reference, ``nvml.h``.
"""

import ctypes
from collections import Counter
from contextlib import AbstractContextManager
from dataclasses import dataclass
from statistics import median
from threading import Event, Thread
from types import TracebackType

import torch

LIBRARY = "libnvidia-ml.so.1"
INTERVAL_S = 0.05
_SM, _MEMORY, _GPU_SENSOR = 1, 2, 0
_CLOCKS = {"sm_clock_mhz": _SM, "memory_clock_mhz": _MEMORY}
SLOWING = {
    "power_cap": 0x4,
    "hardware_slowdown": 0x8,
    "software_thermal": 0x20,
    "hardware_thermal": 0x40,
    "power_brake": 0x80,
}
"""Bits of ``nvmlClocksEventReasons`` that say that the GPU holds itself back."""


@dataclass(frozen=True)
class Sample:
    """One reading: numbers by name, and the names of :data:`SLOWING` that applied."""

    numbers: dict[str, float]
    slowed: tuple[str, ...]


class Nvml:
    """One GPU in NVML; what it cannot tell is left out of its samples.

    Raises ``OSError`` where the library is missing or does not know the GPU.
    """

    def __init__(self, uuid: str, library: str = LIBRARY) -> None:
        self._library = ctypes.CDLL(library)
        self._handle = ctypes.c_void_p()
        code = self._library.nvmlInit_v2() or self._library.nvmlDeviceGetHandleByUUID(
            uuid.encode(), ctypes.byref(self._handle)
        )
        if code:
            raise OSError(f"NVML answers with error {code} for {uuid}")

    def sample(self) -> Sample:
        """Clocks in MHz, temperature in °C, power in W, and why the GPU slows down."""
        unsigned = ctypes.c_uint
        numbers: dict[str, float | None] = {
            name: self._read("nvmlDeviceGetClockInfo", unsigned(kind))
            for name, kind in _CLOCKS.items()
        }
        numbers["temperature_c"] = self._read("nvmlDeviceGetTemperature", unsigned(_GPU_SENSOR))
        milliwatts = self._read("nvmlDeviceGetPowerUsage")
        numbers["power_w"] = None if milliwatts is None else milliwatts / 1e3
        reasons = ctypes.c_ulonglong()
        # The newer name, ClocksEventReasons, is missing in older drivers; this one is in all.
        bits = int(self._read("nvmlDeviceGetCurrentClocksThrottleReasons", result=reasons) or 0)
        slowed = tuple(name for name, bit in SLOWING.items() if bits & bit)
        return Sample({n: float(v) for n, v in numbers.items() if v is not None}, slowed)

    def _read(
        self,
        function: str,
        *arguments: ctypes.c_uint,
        result: "ctypes.c_uint | ctypes.c_ulonglong | None" = None,
    ) -> int | None:
        value = ctypes.c_uint() if result is None else result
        code = getattr(self._library, function)(self._handle, *arguments, ctypes.byref(value))
        return None if code else value.value


def nvml_of(device: torch.device) -> Nvml | None:
    """NVML's view of ``device``, None where there is none."""
    # CUDA_VISIBLE_DEVICES renumbers GPUs for torch but not for NVML; the UUID names one.
    uuid = getattr(torch.cuda.get_device_properties(device), "uuid", None)
    if uuid is None:
        return None
    try:
        return Nvml(f"GPU-{str(uuid).removeprefix('GPU-')}")
    except OSError:
        return None


class Watch(AbstractContextManager["Watch"]):
    """Samples a GPU on a thread of its own while the block runs; ``summary`` is for a record."""

    def __init__(self, nvml: Nvml, interval_s: float = INTERVAL_S) -> None:
        self._nvml = nvml
        self._interval_s = interval_s
        self._ended = Event()
        self._samples: list[Sample] = []
        self._thread = Thread(target=self._run, daemon=True)

    def __enter__(self) -> "Watch":
        self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._ended.set()
        self._thread.join()

    def _run(self) -> None:
        while True:
            self._samples.append(self._nvml.sample())
            if self._ended.wait(self._interval_s):
                return

    def summary(self) -> dict[str, float]:
        """Medians by name, the lowest SM clock, and the share of samples slowed by each reason."""
        return summarise(self._samples)


def summarise(samples: list[Sample]) -> dict[str, float]:
    """As :meth:`Watch.summary`; shares in per cent, of reasons that occurred."""
    names = dict.fromkeys(name for sample in samples for name in sample.numbers)
    values = {name: [s.numbers[name] for s in samples if name in s.numbers] for name in names}
    summary = {name: float(median(found)) for name, found in values.items()}
    if "sm_clock_mhz" in values:
        summary["lowest_sm_clock_mhz"] = min(values["sm_clock_mhz"])
    counts = Counter(reason for sample in samples for reason in sample.slowed)
    for reason, count in counts.items():
        summary[f"slowed_by_{reason}_percent"] = 100 * count / len(samples)
    return summary
