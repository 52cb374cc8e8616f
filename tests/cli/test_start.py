"""What starting costs: nothing is imported before it is used."""

import os
import subprocess
import sys

import pytest
import typer

from hmc_fast.cli.app import application, run
from hmc_fast.cli.commands import COMMANDS

HEAVY = {"torch", "torchvision", "triton", "lightning", "sklearn", "scipy", "numpy", "pydicom"}
COMPLETE = "import sys; from hmc_fast.cli.app import main; sys.argv = ['hmc-fast']; main()"
MAIN = "from hmc_fast.cli.app import run; run({arguments})"


def imported(code: str) -> set[str]:
    """Top-level modules that a fresh interpreter imports for ``code``."""
    done = subprocess.run(
        [sys.executable, "-X", "importtime", "-c", code], capture_output=True, text=True, check=True
    )
    lines = (line for line in done.stderr.splitlines() if line.startswith("import time:"))
    return {line.rsplit("|", 1)[1].strip().split(".")[0] for line in lines}


@pytest.mark.parametrize("arguments", [["--help"], ["-h"], ["--version"], ["nothing"]], ids=str)
def test_what_runs_no_command_imports_no_library_of_numbers(arguments: list[str]) -> None:
    assert not HEAVY & imported(MAIN.format(arguments=arguments))


def test_doctor_imports_no_training() -> None:
    assert not {"lightning", "sklearn", "torchvision"} & imported(MAIN.format(arguments=["doctor"]))


def test_operators_import_pytorch_and_nothing_of_films() -> None:
    modules = imported("import hmc_fast.kernels")
    assert "torch" in modules
    assert not {"torchvision", "sklearn", "scipy", "pydicom", "pandas"} & modules


def test_predictions_import_nothing_that_only_studies_need() -> None:
    code = "import hmc_fast.prediction.job, hmc_fast.prediction.recipe"
    assert not {"sklearn", "lightning", "torchmetrics", "matplotlib", "pandas"} & imported(code)


def test_names_of_the_package_are_imported_when_they_are_used() -> None:
    code = "import hmc_fast; assert hmc_fast.create_model('resnet18'); dir(hmc_fast)"
    assert "torch" not in imported("import hmc_fast; hmc_fast.__version__")
    assert "torch" in imported(code)
    with pytest.raises(ImportError, match="cannot import name 'nothing'"):
        from hmc_fast import nothing  # type: ignore[attr-defined]  # noqa: F401


def test_every_command_is_listed_and_loads() -> None:
    everything = typer.main.get_command(application())
    listed = typer.main.get_command(application(""))
    names = [command.name for command in COMMANDS]
    for group in (everything, listed):
        assert list(group.commands) == names  # type: ignore[attr-defined]
        shown = {name: c.short_help for name, c in group.commands.items()}  # type: ignore[attr-defined]
        assert shown == {command.name: command.summary for command in COMMANDS}


@pytest.mark.parametrize(
    ("unknown", "meant"), [("--lr", "--learning-rate"), ("--learning-rat", "--learning-rate")]
)
def test_the_option_that_was_meant_is_named(
    unknown: str, meant: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["train", unknown, "1"]) == 2
    assert meant in capsys.readouterr().err


def test_a_shell_completes_commands_and_options() -> None:
    def completed(line: str) -> str:
        done = subprocess.run(
            [sys.executable, "-c", COMPLETE],
            env={
                **os.environ,
                "_HMC_FAST_COMPLETE": "complete_bash",
                "COMP_WORDS": line,
                "COMP_CWORD": str(len(line.split()) - 1),
            },
            capture_output=True,
            text=True,
            check=False,
        )
        return done.stdout

    assert "predict" in completed("hmc-fast pre")
    assert "--learning-rate" in completed("hmc-fast train --learn")
