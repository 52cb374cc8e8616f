"""``hmc-fast bench compare`` and ``report``: records made earlier."""

from pathlib import Path
from typing import Annotated

import typer

from hmc_fast.cli import options
from hmc_fast.cli.config_file import OPTIONS_FILE, Effective, takes_config
from hmc_fast.cli.output import console, errors, print_json, print_table
from hmc_fast.errors import UserError

REGRESSION = 3
"""Exit code where something became slower, broke or is missing."""
DAMAGE = (ArithmeticError, AttributeError, LookupError, TypeError, ValueError)
"""What a page raises where the free parts of a record are not what it looks for."""
TOO_NOISY = 4
"""Exit code where nothing is known to be slower, but noise could hide it."""


def compare(
    old: Annotated[Path, typer.Argument(help="The record to compare with.")],
    new: Annotated[Path, typer.Argument(help="The newer record.")],
    further: Annotated[
        list[Path] | None,
        typer.Argument(help="Records of further runs of both, old and new in turn."),
    ] = None,
    band: Annotated[
        float, typer.Option(min=0, help="Least relative difference that is called a change.")
    ] = 0.05,
    as_json: options.AsJson = False,
) -> None:
    """Compare two records case by case.

    The noise band comes from the repeats within both records, or from pairs of runs taken in turn.
    Exit code 0: nothing became slower; 3: something became slower, broke or is missing; 4: noise
    could hide a change of --band, and the table says how many repeats or pairs would tell (twice
    the --seconds of a run count as twice its repeats); 1: a record cannot be read.

    Examples: [bold]hmc-fast bench compare main.jsonl branch.jsonl[/bold];
    [bold]hmc-fast bench compare main.jsonl branch.jsonl main2.jsonl branch2.jsonl[/bold]
    """
    from hmc_fast.bench.record import read_record
    from hmc_fast.bench.report.compare import compare as compare_records
    from hmc_fast.bench.report.compare import differences_between, has_regression, is_too_noisy
    from hmc_fast.bench.report.tables import comparison_table

    before, after = read_record(old), read_record(new)
    others = [read_record(path) for path in further or ()]
    if len(others) % 2:
        raise UserError(
            f"{(further or [new])[-1]}: has no newer record beside it; runs go by pairs"
        )
    pairs = [(before, after), *zip(others[::2], others[1::2], strict=True)]
    comparisons = compare_records(before, after, band, pairs[1:])
    regression, too_noisy = has_regression(comparisons), is_too_noisy(comparisons)
    differences = list(dict.fromkeys(line for both in pairs for line in differences_between(*both)))
    problems = [problem for both in pairs for record in both for problem in record.problems]
    if as_json:
        print_json(
            {
                "regression": regression,
                "too_noisy": too_noisy,
                "least_effect": band,
                "differences": differences,
                "problems": problems,
                "comparisons": [comparison.to_json() for comparison in comparisons],
            }
        )
    else:
        print_table(*comparison_table(comparisons))
        for line in [*differences, *problems]:
            errors.print(line, style="yellow", markup=False, highlight=False)
        console.print(_conclusion(regression, too_noisy, band), markup=False, highlight=False)
    if regression or too_noisy:
        raise typer.Exit(REGRESSION if regression else TOO_NOISY)


def _conclusion(regression: bool, too_noisy: bool, band: float) -> str:
    least = f"least effect {100 * band:g} %"
    if regression:
        return f"regression ({least})"
    return f"too noisy to judge some rows ({least})" if too_noisy else f"no regression ({least})"


@takes_config
def report(
    records: Annotated[
        list[Path],
        typer.Argument(
            help="Records, oldest first: of the same rows and device, they are steps of one part."
        ),
    ],
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder; that of the last record by default.")
    ] = None,
    *,
    effective: Effective,
) -> None:
    """Write report.md and report.html of one or several records of any bench commands.

    Records that measured something else have a part each on the same page.

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
    folder = out or records[-1].parent
    # Beside the options of the run that made the record.
    effective.keep_in(folder, "report.md", "report.html", options_file=f"report.{OPTIONS_FILE}")
    try:
        markdown, html = write_reports(named, make_folder(folder))
    except DAMAGE as error:
        raise UserError(
            f"{', '.join(map(str, records))}: cannot be shown, the line of the run is damaged "
            f"or of another release ({type(error).__name__}: {error})"
        ) from error
    console.print(f"report {markdown}\n       {html}", markup=False)
