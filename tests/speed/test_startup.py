"""How long a command takes before it does anything; alone on the machine.

Seconds differ by more than twice between machines, so the unit is what ``import torch`` takes on
this one, measured in turns with the command. It was 1.4 s where ``--help`` took .14 s and
``doctor``, which imports torch, 1.9 s: .7 and 3 seconds, as promised, are .5 and 2.1 of it.
"""

import subprocess
import sys
import time

import pytest

REPEATS = 3


@pytest.mark.parametrize(
    ("arguments", "imports_of_torch"), [(("--help",), 0.5), (("doctor",), 2.1)]
)
def test_start_up(arguments: tuple[str, ...], imports_of_torch: float) -> None:
    torch, command = [], []
    for _ in range(REPEATS):
        torch.append(_seconds("-c", "import torch"))
        command.append(_seconds("-m", "hmc_fast", *arguments))
    assert min(command) < imports_of_torch * min(torch)


def _seconds(*arguments: str) -> float:
    start = time.perf_counter()
    subprocess.run([sys.executable, *arguments], capture_output=True, check=True)
    return time.perf_counter() - start
