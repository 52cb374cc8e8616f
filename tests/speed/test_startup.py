"""How long a command takes before it does anything; alone on the machine."""

import subprocess
import sys
import time

import pytest

REPEATS = 3


@pytest.mark.parametrize(("arguments", "seconds"), [(("--help",), 0.7), (("doctor",), 3.0)])
def test_start_up(arguments: tuple[str, ...], seconds: float) -> None:
    taken = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        subprocess.run([sys.executable, "-m", "hmc_fast", *arguments], capture_output=True)
        taken.append(time.perf_counter() - start)
    assert min(taken) < seconds
