"""``hmc-fast study``: reports and records of cross-validation studies, and the lesion study."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from hmc_fast.cli import options
from hmc_fast.cli.choices import choice
from hmc_fast.cli.config_file import Effective, takes_config
from hmc_fast.cli.film_limit import limits_films
from hmc_fast.cli.output import console, print_json, print_table, progress_bar
from hmc_fast.errors import UserError
from hmc_fast.training.config import NATIVE_SIZE

study = typer.Typer(
    name="study",
    help="Report on studies of [bold]hmc-fast cv[/bold], keep their numbers; the lesion study.",
    no_args_is_help=True,
)

METRICS = ("accuracy", "precision", "recall", "f1", "auc_roc", "specificity")

Runs = Annotated[
    list[Path], typer.Argument(help="Study folders or records; several compare their settings.")
]


@study.command()
@takes_config
def report(
    runs: Runs,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the reports; by default in the first study.")
    ] = None,
    metric: Annotated[
        str,
        choice("metric", METRICS, help="What the critical-difference diagram ranks by."),
    ] = "auc_roc",
    as_json: options.AsJson = False,
    *,
    effective: Effective,
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
    effective.keep_in(folder, "report.*", "figures/*")
    paths = write_study_reports(comparison, folder, metric)
    if as_json:
        print_json(comparison_json(comparison))
        return
    for group in comparison.groups:
        table = metrics_table(group)
        print_table(table.header, table.rows, title=group.title)
    console.print("\n".join(f"report {path}" for path in paths), markup=False)


@study.command()
@takes_config
def record(
    run: Annotated[Path, typer.Argument(help="A study folder.")],
    out: Annotated[Path, typer.Option(help="JSON lines file to write.")],
    *,
    effective: Effective,
) -> None:
    """Keep a study's numbers in one file: settings, learning curves, out-of-fold logits.

    Neither films nor weights go into it; [bold]study report[/bold] reads it like a study folder.

    Example: [bold]hmc-fast study record runs/study --out study.jsonl[/bold]
    """
    from hmc_fast.files import refuse_overwrite
    from hmc_fast.study import read_study, write_study_record
    from hmc_fast.study.record import is_study_record

    refuse_overwrite(out, run)
    effective.keep_beside(out, ours=is_study_record(out))
    kept = read_study(run)
    write_study_record(out, kept)
    console.print(f"record {out}: {len(kept.jobs)} jobs", markup=False)


@study.command()
@takes_config
@limits_films
def lesions(
    data: options.Data,
    weights: Annotated[Path, typer.Option(help="The trunk's parameters, a safetensors file.")],
    out: options.Out,
    *,
    trunk: Annotated[
        str, choice("trunk", ("resnet50", "resnet18"), help="Whose features are computed.")
    ] = "resnet50",
    size: Annotated[
        int,
        typer.Option(help="Rows of the image, pixels of a film's longer side, a multiple of 32."),
    ] = NATIVE_SIZE,
    clahe: Annotated[
        bool, typer.Option("--clahe", help="Equalise the local contrast of films (CLAHE).")
    ] = False,
    allow_missing: options.AllowMissing = False,
    folds: options.FoldCount = 5,
    seeds: Annotated[int, typer.Option(min=1, help="Repeat with so many partitions.")] = 3,
    seed: options.Seed = 0,
    nested: Annotated[
        bool, typer.Option("--nested", help="Also choose among readouts by inner folds; slow.")
    ] = False,
    recipes: Annotated[
        bool, typer.Option("--recipes", help="Also score the films by every declared readout.")
    ] = False,
    attention: Annotated[
        bool,
        typer.Option("--attention", help="As --recipes, and by trained attention; slow."),
    ] = False,
    as_json: options.AsJson = False,
    effective: Effective,
) -> None:
    """Find malignant films by a head that is fitted to the circles of lesions; resumable.

    Patient-disjoint folds, a frozen trunk whose features are computed once, a convex fit in each
    fold. Every figure is printed with its interval over patients and kept in lesions.json, with the
    score of every held-out film.

    Example: [bold]hmc-fast study lesions --data mias --weights resnet50.safetensors
    --out runs/lesions[/bold]
    """
    from hmc_fast.data import Preprocessing, read_films
    from hmc_fast.data.preprocessing import native_width
    from hmc_fast.study import LesionSettings, lesion_figures, lesion_table, run_lesion_study
    from hmc_fast.study.lesion_record import LESIONS_FILE
    from hmc_fast.study.lesions import ATTENTION_RECIPES, SCORED_RECIPES

    if not weights.is_file():
        raise UserError(f"--weights {weights}: no such file; name the trunk's safetensors file")
    preprocessing = Preprocessing(size, native_width(size), native=True, clahe=clahe)
    settings = LesionSettings(trunk, weights.name, folds, preprocessing)
    command = (
        f"hmc-fast study lesions --data {data.resolve().name} --weights {weights.name} "
        f"--out {out.resolve().name} --trunk {trunk} --size {size} --folds {folds} "
        f"--seeds {seeds} --seed {seed}{' --nested' if nested else ''}"
        f"{' --recipes' if recipes else ''}{' --attention' if attention else ''}"
        f"{' --clahe' if clahe else ''}"
        f"{' --allow-missing' if allow_missing else ''}"
    )
    effective.keep_in(out)
    scored = SCORED_RECIPES if recipes or attention else ()
    with progress_bar("films or folds") as report:
        record = run_lesion_study(
            read_films(data, allow_missing=allow_missing),
            weights,
            settings,
            out,
            seeds=range(seed, seed + seeds),
            nested=nested,
            recipes=(*scored, *ATTENTION_RECIPES) if attention else scored,
            command=command,
            on_progress=report,
        )
    table = lesion_table(record)
    if as_json:
        figures = [asdict(figure) for figure in lesion_figures(record)]
        print_json({"protocol": table.note, "data": record.data, "figures": figures})
        return
    print_table(table.header, table.rows, title=table.note)
    console.print(f"record {out / LESIONS_FILE}", markup=False)
