"""Entry point: commands, and one clear line for everything that a person can mend.

Exit codes: 0 done, 1 an error that the message explains, 2 wrong usage, 130 interrupted;
``bench compare`` has 3 for a regression and 4 where noise could hide one.
"""

import os
import sys
from collections.abc import Sequence
from typing import Annotated

import torch
import typer

from hmc_fast.cli import bench_compare, bench_jobs
from hmc_fast.cli.bench import bench_app
from hmc_fast.cli.cv import cv
from hmc_fast.cli.doctor import doctor
from hmc_fast.cli.evaluate import evaluate
from hmc_fast.cli.explain import explain
from hmc_fast.cli.export import export
from hmc_fast.cli.kernels import app as kernels
from hmc_fast.cli.leakage_probe import leakage_probe
from hmc_fast.cli.localise import localise
from hmc_fast.cli.output import errors
from hmc_fast.cli.phantoms import phantoms
from hmc_fast.cli.predict import predict
from hmc_fast.cli.study import study
from hmc_fast.cli.train import train
from hmc_fast.cli.verify import verify
from hmc_fast.errors import UserError
from hmc_fast.kernels.backend import BackendUnavailableError, UnknownBackendError

app = typer.Typer(
    name="hmc-fast",
    help="HMC-Net for mammograms: train, evaluate and benchmark. Research software, not a medical "
    "device.",
    no_args_is_help=True,
    add_completion=False,
    context_settings={"help_option_names": ["-h", "--help"]},
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
for bench_command in (
    bench_jobs.kernels,
    bench_jobs.model,
    bench_jobs.targets,
    bench_compare.compare,
    bench_compare.report,
):
    bench_app.command()(bench_command)
app.add_typer(bench_app, name="bench")
for command in (
    cv,
    train,
    evaluate,
    predict,
    explain,
    localise,
    verify,
    leakage_probe,
    doctor,
    phantoms,
):
    app.command(no_args_is_help=False)(command)
app.add_typer(export, name="export")
app.add_typer(study)
app.add_typer(kernels, name="kernels")


INTERRUPTED = 130

# Newer releases of typer carry a copy of click, so the class is reached through typer.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]


@app.callback(invoke_without_command=True)
def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
) -> None:
    if version:
        from hmc_fast import __version__

        print(__version__)
        raise typer.Exit


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run a command line; returns its exit code."""
    try:
        code = app(list(arguments), standalone_mode=False)
        if code == INTERRUPTED:  # some releases of typer turn Ctrl-C into this result
            raise KeyboardInterrupt
        return int(code or 0)
    except (UserError, BackendUnavailableError, UnknownBackendError) as error:
        return _complain(str(error))
    except typer.Exit as exit_request:
        return exit_request.exit_code
    except _UsageError as error:
        error.show()  # type: ignore[attr-defined]
        return 2
    except (KeyboardInterrupt, typer.Abort):
        _complain(
            "interrupted; nothing half-written is left (cv, train and bench --out continue where "
            "they stopped when run again)"
        )
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return _complain(f"{error.filename or 'a file'}: {error.strerror or error}")
    except (MemoryError, RuntimeError) as error:
        if not _is_out_of_memory(error):
            raise
        return _complain("out of memory; use a smaller --size or --batch-size")


def _is_out_of_memory(error: Exception) -> bool:
    """Torch reports the CPU's exhaustion as a plain RuntimeError of its allocator."""
    kinds = (MemoryError, torch.OutOfMemoryError)
    return isinstance(error, kinds) or "DefaultCPUAllocator" in str(error)


def _complain(message: str) -> int:
    errors.print(f"hmc-fast: {message}", style="red", markup=False, highlight=False, soft_wrap=True)
    return 1
