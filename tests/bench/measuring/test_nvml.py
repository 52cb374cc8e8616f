"""NVML through its C interface: a library with the same functions stands in for the driver's."""

import subprocess
import time
from pathlib import Path

import pytest
import torch

from hmc_fast.bench.measuring.device import clocks_during
from hmc_fast.bench.measuring.nvml import Nvml, Sample, Watch, summarise

# Signatures and codes as in nvml.h: 3 is NVML_ERROR_NOT_SUPPORTED, 6 NVML_ERROR_NOT_FOUND.
STAND_IN = """
#include <string.h>
static int device;
static int reads;
int nvmlInit_v2(void) { return 0; }
int nvmlDeviceGetHandleByUUID(const char *uuid, void **handle) {
  *handle = &device;
  return strcmp(uuid, "GPU-1234") ? 6 : 0;
}
int nvmlDeviceGetClockInfo(void *handle, unsigned kind, unsigned *mhz) {
  if (handle != &device) return 2;
  if (kind == 1) *mhz = reads++ ? 1980 : 1200;
  if (kind == 2) *mhz = 2619;
  return kind == 1 || kind == 2 ? 0 : 2;
}
int nvmlDeviceGetTemperature(void *handle, unsigned sensor, unsigned *celsius) { return 3; }
int nvmlDeviceGetPowerUsage(void *handle, unsigned *milliwatts) {
  *milliwatts = 412500;
  return handle == &device ? 0 : 2;
}
int nvmlDeviceGetCurrentClocksThrottleReasons(void *handle, unsigned long long *reasons) {
  *reasons = reads > 1 ? 0x1ull : (1ull << 40) | 0x4ull | 0x20ull;
  return 0;
}
"""


@pytest.fixture
def library(tmp_path: Path) -> str:
    source, built = tmp_path / "nvml.c", tmp_path / "libnvml.so"
    source.write_text(STAND_IN)
    subprocess.run(["cc", "-shared", "-fPIC", source, "-o", built], check=True)
    return str(built)


def test_a_sample_has_what_the_library_tells_and_leaves_the_rest_out(library: str) -> None:
    nvml = Nvml("GPU-1234", library)
    numbers = {"sm_clock_mhz": 1200.0, "memory_clock_mhz": 2619.0, "power_w": 412.5}
    assert nvml.sample() == Sample(numbers, ("power_cap", "software_thermal"))
    assert nvml.sample() == Sample(numbers | {"sm_clock_mhz": 1980.0}, ())


def test_an_unknown_gpu_or_a_missing_library_is_an_oserror(library: str, tmp_path: Path) -> None:
    with pytest.raises(OSError, match="error 6 for GPU-5678"):
        Nvml("GPU-5678", library)
    with pytest.raises(OSError, match="cannot open"):
        Nvml("GPU-1234", str(tmp_path / "missing.so"))


def test_a_watch_samples_while_its_block_runs(library: str) -> None:
    with Watch(Nvml("GPU-1234", library), interval_s=0.005) as watch:
        time.sleep(0.2)
    seen = watch.summary()
    assert seen["sm_clock_mhz"] == 1980  # the median
    assert seen["lowest_sm_clock_mhz"] == 1200
    assert 0 < seen["slowed_by_power_cap_percent"] < 50
    assert seen["slowed_by_power_cap_percent"] == seen["slowed_by_software_thermal_percent"]


def test_nothing_seen_is_nothing_said() -> None:
    assert summarise([]) == {}
    assert summarise([Sample({}, ())]) == {}


def test_a_cpu_is_seen_after_the_block() -> None:
    with clocks_during(torch.device("cpu")) as seen:
        assert not seen
    assert seen["load_average"] >= 0


@pytest.mark.gpu
def test_a_busy_gpu_tells_its_clocks() -> None:
    x = torch.randn(4096, 4096, device="cuda")
    with clocks_during(x.device) as seen:
        for _ in range(50):
            x @ x
        torch.cuda.synchronize()
    assert seen["sm_clock_mhz"] > 200
    assert seen["power_w"] > 10
