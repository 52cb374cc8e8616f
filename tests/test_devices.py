"""Memory that is kept is not paged in again, and goes back at the end."""

import platform
import subprocess
import sys

import pytest

PAGES = """
import resource
import psutil
import torch
from hmc_fast.devices import freed_memory_kept

def faults():
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    tensors = [torch.ones(2**23 + i) for i in range(4)]  # 32 MiB each, and as much again
    results = [x + 1 for x in tensors]
    del tensors, results
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before

def resident():
    return psutil.Process().memory_info().rss / 2**20

faults()
start, plain = resident(), faults()
with freed_memory_kept():
    kept = [faults() for _ in range(12)]
    held = resident() - start
print(plain, kept[0], sum(kept[2:]) / 10, held, resident() - start)
"""


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="needs the C library glibc")
def test_freed_memory_is_kept_and_then_given_back() -> None:
    done = subprocess.run([sys.executable, "-c", PAGES], capture_output=True, text=True, check=True)
    plain, first, later, held_mib, left_mib = map(float, done.stdout.split())
    assert min(plain, first) > 10 * later
    assert held_mib > 240
    assert left_mib < 8
