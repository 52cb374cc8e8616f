"""What is tested is what users install."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

import hmc_fast
import hmc_fast.bench
import hmc_fast.export
import hmc_fast.kernels


@pytest.mark.skipif("HMC_FAST_TEST_WHEEL" not in os.environ, reason="not a run of the built wheel")
def test_the_wheel_is_tested_not_the_working_tree() -> None:
    for package in (hmc_fast, hmc_fast.kernels, hmc_fast.bench, hmc_fast.export):
        assert "site-packages" in Path(package.__file__).parts


def test_templates_and_type_marker_are_packaged() -> None:
    root = Path(hmc_fast.__file__).parent
    assert (root / "py.typed").is_file()
    assert {
        path.name for path in (Path(hmc_fast.bench.__file__).parent / "templates").iterdir()
    } == {
        "report.md.j2",
        "profile.html.j2",
        "profile.md.j2",
        "report.html.j2",
    }


def test_the_reference_works_without_triton() -> None:
    code = "import sys; sys.modules['triton'] = None; import hmc_fast.kernels.reference"
    subprocess.run([sys.executable, "-P", "-c", code], check=True)


def test_help_of_every_command_shows_an_example() -> None:
    for command in (
        "bench", "cv", "train", "evaluate", "predict", "explain", "localise", "verify", "doctor",
        "phantoms",
    ):  # fmt: skip
        done = subprocess.run(
            [
                sys.executable,
                "-P",
                "-c",
                "from hmc_fast.cli.app import main; main()",
                command,
                "--help",
            ],
            capture_output=True,
            text=True,
            check=True,
        )
        assert "Example" in done.stdout
        assert f"hmc-fast {command}" in done.stdout
