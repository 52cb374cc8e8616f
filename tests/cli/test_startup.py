"""Commands import what they use, when they use it: help comes at once."""

import subprocess
import sys

import pytest

HEAVY = {"torch", "torchvision", "lightning", "numpy", "scipy", "sklearn", "matplotlib", "pydicom"}
BEYOND_DOCTOR = {"torchvision", "lightning", "torchmetrics", "sklearn", "matplotlib"}


def imported(*arguments: str) -> set[str]:
    """The packages that a command imports, by Python's own list."""
    command = [sys.executable, "-X", "importtime", "-m", "hmc_fast", *arguments]
    run = subprocess.run(command, capture_output=True, text=True, check=False)
    lines = [line for line in run.stderr.splitlines() if line.startswith("import time:")]
    return {line.rpartition("|")[2].strip().partition(".")[0] for line in lines}


@pytest.mark.parametrize(
    "arguments", [("--help",), ("predict", "-h"), ("export", "onnx", "--help")]
)
def test_help_imports_nothing_heavy(arguments: tuple[str, ...]) -> None:
    packages = imported(*arguments)
    assert "hmc_fast" in packages
    assert packages & HEAVY == set()


def test_doctor_imports_torch_and_neither_training_nor_models() -> None:
    packages = imported("doctor")
    assert "torch" in packages
    assert packages & BEYOND_DOCTOR == set()
