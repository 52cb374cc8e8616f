"""``hmc-fast bench compare`` and ``report``: records made earlier."""

from pathlib import Path
from typing import Annotated

import typer

from hmc_fast.cli import options
from hmc_fast.cli.output import console, errors, print_json, print_table

REGRESSION = 3
"""Exit code where something became slower, broke or is missing."""


def compare(
    old: Annotated[Path, typer.Argument(help="The record to compare with.")],
    new: Annotated[Path, typer.Argument(help="The newer record.")],
    band: Annotated[
        float, typer.Option(min=0, help="Least relative difference that is called a change.")
    ] = 0.05,
    as_json: options.AsJson = False,
) -> None:
    """Compare two records case by case.

    The noise band comes from the spread of both records' samples. Exit code 0: nothing became
    slower; 3: something became slower, broke or is missing; 1: a record cannot be read.

    Example: [bold]hmc-fast bench compare main.jsonl branch.jsonl[/bold]
    """
    from hmc_fast.bench.record import read_record
    from hmc_fast.bench.report.compare import compare as compare_records
    from hmc_fast.bench.report.compare import differences_between, has_regression
    from hmc_fast.bench.report.tables import comparison_table

    before, after = read_record(old), read_record(new)
    comparisons = compare_records(before, after, band)
    regression = has_regression(comparisons)
    differences = differences_between(before, after)
    problems = before.problems + after.problems
    if as_json:
        print_json(
            {
                "regression": regression,
                "differences": differences,
                "problems": problems,
                "comparisons": [comparison.to_json() for comparison in comparisons],
            }
        )
    else:
        print_table(*comparison_table(comparisons))
        for line in [*differences, *problems]:
            errors.print(line, style="yellow", markup=False, highlight=False)
        console.print("regression" if regression else "no regression")
    if regression:
        raise typer.Exit(REGRESSION)


def report(
    records: Annotated[
        list[Path],
        typer.Argument(help="A record; or several, oldest first, for the steps between them."),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder; that of the last record by default.")
    ] = None,
) -> None:
    """Write report.md and report.html of a record of any bench command.

    Example: [bold]hmc-fast bench report runs/bench-kernels/record.jsonl[/bold]
    """
    from hmc_fast.bench.record import read_record
    from hmc_fast.bench.report.pages import write_reports
    from hmc_fast.files import make_folder

    named = [
        (path.stem if path.stem != "record" else path.parent.name, read_record(path))
        for path in records
    ]
    for _, record in named:
        for problem in record.problems:
            errors.print(problem, style="yellow", markup=False, highlight=False)
    markdown, html = write_reports(named, make_folder(out or records[-1].parent))
    console.print(f"report {markdown}\n       {html}", markup=False)
