"""Memory with protected pages around it, for checks in a process of their own."""

import subprocess
import sys
from collections.abc import Callable

import pytest

GUARDED = '''
import ctypes, mmap
from math import prod
import torch

torch.set_num_threads(1)
PAGE, PROT_NONE = mmap.PAGESIZE, 0
libc = ctypes.CDLL(None, use_errno=True)
kept = []

def guarded(shape, at_end, dtype=torch.float32, extra=0):
    """A tensor that ends (or starts) where a protected page starts (or ends)."""
    size = prod(shape) * dtype.itemsize
    pages = -(-size // PAGE)
    area = mmap.mmap(-1, (pages + 2) * PAGE)
    start = ctypes.addressof(ctypes.c_char.from_buffer(area))
    for guard in (start, start + (pages + 1) * PAGE):
        assert libc.mprotect(ctypes.c_void_p(guard), PAGE, PROT_NONE) == 0
    kept.append(area)
    address = start + (PAGE + pages * PAGE - size if at_end else PAGE)
    memory = (ctypes.c_char * (size + extra * dtype.itemsize)).from_address(address)
    flat = torch.frombuffer(memory, dtype=dtype, count=prod(shape) + extra)
    return flat if extra else flat.view(shape)
'''


@pytest.fixture
def run_guarded() -> Callable[[str], "subprocess.CompletedProcess[str]"]:
    """Runs code that may call ``guarded`` in a process of its own, which a stray access kills."""

    def run(code: str) -> "subprocess.CompletedProcess[str]":
        return subprocess.run(
            [sys.executable, "-c", GUARDED + code], capture_output=True, text=True, timeout=120
        )

    return run
