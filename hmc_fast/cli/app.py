"""Entry point: commands, and one clear line for everything that a person can mend.

Exit codes: 0 done, 1 an error that the message explains, 2 wrong usage, 130 interrupted;
``bench compare`` has 3 for a regression and 4 where noise could hide one.
"""

import logging
import os
import sys
import traceback
from collections.abc import Sequence
from difflib import get_close_matches
from typing import Annotated, Any

import typer

from hmc_fast.cli import output
from hmc_fast.cli.commands import COMMANDS, register
from hmc_fast.cli.output import errors
from hmc_fast.errors import UserError
from hmc_fast.files import no_debris

NAME = "hmc-fast"
INTERRUPTED = 130
VERBOSE = "--verbose"
GLOBAL = ("--quiet", VERBOSE)
"""Options of every command, before its name or behind it."""
LINK_LOOP = "Symlink loop"
"""What pathlib says, in a RuntimeError, of a link that leads to itself."""
COMPLETED_LINES = ("COMP_WORDS", "_TYPER_COMPLETE_ARGS")
"""Where bash, and the other shells, put the line that is to be completed."""

# Newer releases of typer carry a copy of click, so the class is reached through typer.
_UsageError: type[Exception] = typer.BadParameter.__mro__[1]


def application(chosen: str | None = None) -> typer.Typer:
    """The command line, with the ``chosen`` command; with all of them where None is chosen."""
    app = typer.Typer(
        name=NAME,
        help="HMC-Net for mammograms: train, evaluate and benchmark. Research software, not a "
        "medical device.",
        no_args_is_help=True,
        context_settings={"help_option_names": ["-h", "--help"]},
        pretty_exceptions_enable=False,
        rich_markup_mode="rich",
    )
    app.callback(invoke_without_command=True)(_options)
    for command in COMMANDS:
        register(app, command, load=chosen is None or command.name == chosen)
    return app


def _options(
    version: Annotated[bool, typer.Option("--version", help="Print the version.")] = False,
    quiet: Annotated[
        bool, typer.Option("--quiet", help="Say nothing of progress: results and errors alone.")
    ] = False,
    verbose: Annotated[
        bool,
        typer.Option(VERBOSE, help="Also what libraries log, and the traceback of an error."),
    ] = False,
) -> None:
    output.progress.quiet = quiet
    if verbose:
        logging.basicConfig(level=logging.INFO)
    if version:
        from hmc_fast import __version__

        print(__version__)
        raise typer.Exit


def main(arguments: Sequence[str] | None = None) -> None:
    """Run the command line and exit."""
    sys.exit(run(sys.argv[1:] if arguments is None else arguments))


def run(arguments: Sequence[str]) -> int:
    """Run a command line; returns its exit code."""
    words = _global_first(arguments)
    try:
        app = application(_chosen_command(words))
        with no_debris():
            code = app(words, prog_name=NAME, standalone_mode=False)
        if code == INTERRUPTED:  # some releases of typer turn Ctrl-C into this result
            raise KeyboardInterrupt
        return int(code or 0)
    except UserError as error:
        if VERBOSE in words:
            traceback.print_exc()
        return _complain(str(error))
    except typer.Exit as exit_request:
        return exit_request.exit_code
    except _UsageError as error:
        _suggest_option(error)
        error.show()  # type: ignore[attr-defined]
        return 2
    except (KeyboardInterrupt, typer.Abort):
        _complain(
            "interrupted; nothing half-written is left (cv, train, predict --out and bench --out "
            "continue where they stopped when run again)"
        )
        return INTERRUPTED
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        return _complain(f"{error.filename or 'a file'}: {error.strerror or error}")
    except (MemoryError, RuntimeError, ValueError) as error:
        if _is_out_of_memory(error):
            return _complain("out of memory; use a smaller --size or --batch-size")
        if str(error).startswith(LINK_LOOP):
            return _complain(str(error))
        if _is_about_backends(error):
            return _complain(str(error))
        raise


def _global_first(arguments: Sequence[str]) -> list[str]:
    """The line with the options of every command in front, where the command line wants them."""
    end = arguments.index("--") if "--" in arguments else len(arguments)
    moved = [word for word in arguments[:end] if word in GLOBAL]
    return [*moved, *(word for word in arguments[:end] if word not in GLOBAL), *arguments[end:]]


def _chosen_command(arguments: Sequence[str]) -> str:
    """The first word of the line that is run, or that a shell completes, which is no option."""
    lines = (os.environ.get(name, "").split()[1:] for name in COMPLETED_LINES)
    words = next(filter(None, lines), arguments)
    return next((word for word in words if not word.startswith("-")), "")


def _is_out_of_memory(error: Exception) -> bool:
    """Torch reports the CPU's exhaustion as a plain RuntimeError of its allocator."""
    from torch import OutOfMemoryError

    kinds = (MemoryError, OutOfMemoryError)
    return isinstance(error, kinds) or "DefaultCPUAllocator" in str(error)


def _is_about_backends(error: Exception) -> bool:
    from hmc_fast.kernels.backend import BackendUnavailableError, UnknownBackendError

    return isinstance(error, BackendUnavailableError | UnknownBackendError)


def _suggest_option(error: Any) -> None:
    """Name the options whose initials an unknown one is (``--lr``), else those it is near to."""
    unknown = getattr(error, "option_name", None)
    if unknown is None or error.ctx is None:
        return
    known = [o for p in error.ctx.command.params for o in p.opts if o.startswith("--")]
    letters = unknown.lstrip("-")
    initials = [o for o in known if "".join(w[:1] for w in o[2:].split("-")) == letters]
    error.possibilities = initials or get_close_matches(unknown.lower(), known, cutoff=0.7)


def _complain(message: str) -> int:
    errors.print(f"hmc-fast: {message}", style="red", markup=False, highlight=False, soft_wrap=True)
    return 1
