"""``hmc-fast study``: reports and records of cross-validation studies."""

from pathlib import Path
from typing import Annotated

import typer

from hmc_fast.cli import options
from hmc_fast.cli.output import console, print_json, print_table

study = typer.Typer(
    name="study",
    help="Report on studies that [bold]hmc-fast cv[/bold] left, or keep their numbers.",
    no_args_is_help=True,
)

Runs = Annotated[
    list[Path], typer.Argument(help="Study folders or records; several compare their settings.")
]


@study.command()
def report(
    runs: Runs,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the reports; by default in the first study.")
    ] = None,
    metric: Annotated[
        str, typer.Option(help="Metric that the critical-difference diagram ranks by.")
    ] = "auc_roc",
    as_json: options.AsJson = False,
) -> None:
    """Tables, tests and figures of one study, or of several that differ in a setting.

    Writes report.md, report.html (self-contained) and report.tex. Models of studies with the same
    films and folds are compared pair by pair, so an ablation is a second study and one report.

    Example: [bold]hmc-fast study report runs/plain runs/cropped --out runs/report[/bold]
    """
    from hmc_fast.study import compare, read_study, write_study_reports
    from hmc_fast.study.report import comparison_json
    from hmc_fast.study.tables import metrics_table

    comparison = compare([read_study(run) for run in runs])
    folder = out or (runs[0] if runs[0].is_dir() else Path("runs") / runs[0].stem) / "report"
    paths = write_study_reports(comparison, folder, metric)
    if as_json:
        print_json(comparison_json(comparison))
        return
    for group in comparison.groups:
        table = metrics_table(group)
        print_table(table.header, table.rows, title=group.title)
    console.print("\n".join(f"report {path}" for path in paths), markup=False)


@study.command()
def record(
    run: Annotated[Path, typer.Argument(help="A study folder.")],
    out: Annotated[Path, typer.Option(help="JSON lines file to write.")],
) -> None:
    """Keep a study's numbers in one file: settings, learning curves, out-of-fold logits.

    Neither films nor weights go into it; [bold]study report[/bold] reads it like a study folder.

    Example: [bold]hmc-fast study record runs/study --out study.jsonl[/bold]
    """
    from hmc_fast.study import read_study, write_study_record

    kept = read_study(run)
    write_study_record(out, kept)
    console.print(f"record {out}: {len(kept.jobs)} jobs", markup=False)
