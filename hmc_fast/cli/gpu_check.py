"""``hmc-fast gpu-check``: what only a GPU can prove, most valuable first."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hmc_fast.cli import options
from hmc_fast.cli.choices import choice
from hmc_fast.cli.config_file import Effective, takes_config
from hmc_fast.cli.output import console, print_json, print_table, progress
from hmc_fast.errors import UserError

if TYPE_CHECKING:
    from hmc_fast.bench.gpu.runner import CheckRecord, StepResult

# Held to the list of steps by a test: it imports PyTorch, for which a --help does not wait.
PARTS = ("parity", "sanitizer", "targets", "engines", "warm-up", "counters", "tuning")
LISTED = ("part", "step", "shows", "why_not")
"""What --list --json tells of a step."""
INCOMPLETE = 3
"""Exit code where nothing failed and something was not reached."""


@takes_config
def gpu_check(
    minutes: Annotated[
        float, typer.Option(min=0.1, help="Stop here; the same command goes on later.")
    ] = 20.0,
    out: options.Out = Path("runs/gpu-check"),
    part: Annotated[
        list[str] | None, choice("part", PARTS, help="Only these parts; repeatable.")
    ] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Run what failed once more.")] = False,
    list_only: Annotated[
        bool, typer.Option("--list", help="Print the steps, and run none.")
    ] = False,
    as_json: options.AsJson = False,
    *,
    effective: Effective,
) -> None:
    """Run on a GPU what no other machine can prove: parity, stray accesses, exports, speed, tiles.

    Each step is a process of its own with a time limit. The record is whole after every step, so
    that a run which ended early goes on where it stopped. Ends with one page: what was proven, what
    failed and why, what was not reached. In a checkout of the repository the tests marked gpu run
    too. Exit code 1 where a step failed, 3 where some were not reached.

    Example: [bold]hmc-fast gpu-check --minutes 10 --out runs/h100[/bold]
    """
    from hmc_fast.bench.gpu.launch import why_no_device
    from hmc_fast.bench.gpu.page import conclusion, write_page
    from hmc_fast.bench.gpu.runner import run_steps
    from hmc_fast.bench.gpu.steps import all_steps, identity, of_parts
    from hmc_fast.environment import environment

    no_device = why_no_device()
    if list_only:
        steps = of_parts(all_steps(out.absolute(), None, checkout_tests()), part)
        reasons = [s.why_not or (no_device if s.needs_gpu else None) for s in steps]
        listed = [(s.part, s.name, s.shows, why) for s, why in zip(steps, reasons, strict=True)]
        if as_json:
            print_json([dict(zip(LISTED, row, strict=True)) for row in listed])
            return
        header = ["part", "step", "what it shows", "cannot run here"]
        print_table(header, [["" if cell is None else cell for cell in row] for row in listed])
        return
    if no_device is not None:
        raise UserError(f"gpu-check: {no_device}; use --list to see what it would run")
    effective.keep_in(out, "report.*", "proposed-tiles.json", "speed/*")
    made_on, architecture = identity()
    steps = of_parts(all_steps(out.absolute(), architecture, checkout_tests()), part)

    def tell(record: "CheckRecord", result: "StepResult") -> None:
        said = result.reason or (f"{result.seconds:.0f} s" if result.seconds else "")
        line = f"{result.part}: {result.name}: {result.state} {said}"
        progress.print(line, markup=False, highlight=False)
        if result.state != "running":
            write_page(record, out)

    record = run_steps(
        steps,
        out,
        minutes=minutes,
        made_on=made_on,
        environment=environment(),
        retry=retry,
        on_change=tell,
    )
    markdown, html = write_page(record, out)
    if as_json:
        print_json(asdict(record))
    else:
        console.print(f"{conclusion(record)}\nreport {markdown}\n       {html}", markup=False)
    if failed := record.having("failed"):
        first = failed[0]
        raise UserError(
            f"gpu-check: {len(failed)} of {len(record.names)} steps failed; the first: "
            f"{first.name}: {first.reason}"
        )
    if record.not_reached:
        raise typer.Exit(INCOMPLETE)


def checkout_tests() -> Path | None:
    """The tests of the repository in whose checkout the command was started, or None."""
    tests = Path("tests").absolute()
    return tests if (tests / "kernels" / "test_gpu.py").is_file() else None
