"""``hmc-fast leakage-probe``: what a split alone buys."""

from dataclasses import asdict
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hmc_fast.cli import options, training_options
from hmc_fast.cli.choices import choice
from hmc_fast.cli.config_file import Effective, takes_config
from hmc_fast.cli.film_limit import limits_films
from hmc_fast.cli.output import console, print_json, print_table, progress_bar
from hmc_fast.data.folds import AUGMENT_FIRST, PROTOCOL, PROTOCOL_TITLES, PROTOCOLS
from hmc_fast.errors import UserError
from hmc_fast.models.registry import MODEL_NAMES
from hmc_fast.training import TrainingConfig

if TYPE_CHECKING:
    from hmc_fast.study.split_check import SplitReport

NO_MODEL = "none"
SHOWN_DUPLICATES = 20


@takes_config
@limits_films
@training_options.takes_training(
    size=64, epochs=5, batch_size=16, learning_rate=3e-4, augment=False
)
def leakage_probe(
    data: options.Data,
    *,
    out: Annotated[
        Path | None, typer.Option(help="Folder for the model's two studies; resumed if there.")
    ] = None,
    split: Annotated[
        Path | None, typer.Option(help="Check this split (CSV: film, split[, patient]) instead.")
    ] = None,
    model: Annotated[
        str,
        choice(
            "model",
            (*MODEL_NAMES, NO_MODEL),
            help="Model to train under both protocols, or none.",
            metavar=training_options.MODEL_METAVAR,
        ),
    ] = "hmc_net_resnet18",
    copies: Annotated[int, typer.Option(help="Rotated copies a film.")] = 45,
    allow_missing: options.AllowMissing = False,
    folds: options.FoldCount = 5,
    training: TrainingConfig,
    as_json: options.AsJson = False,
    effective: Effective,
) -> None:
    """Score a probe that learns nothing, and a model, under a leaking and an honest split.

    Both protocols give the model the same rotated copies; they differ in whether films are rotated
    before the split (augment-first) or patients are split before. With --split, a split file is
    checked for patients on both sides and near-duplicate films; the exit code is 1 where it leaks.

    Examples: [bold]hmc-fast leakage-probe --data mias --model none[/bold];
    [bold]hmc-fast leakage-probe --data mias --split split.csv[/bold]
    """
    from hmc_fast.data import read_films
    from hmc_fast.environment import environment
    from hmc_fast.study import run_cross_validation
    from hmc_fast.study.leakage import run_probe

    films = read_films(data, allow_missing=allow_missing)
    if split is not None:
        from hmc_fast.study.split_check import check_split

        with progress_bar("films") as report:
            _conclude_split(split, check_split(split, data, films, report), as_json)
        return
    name = None if model == NO_MODEL else model
    folder = out or Path("runs") / f"leakage-{datetime.now():%Y%m%d-%H%M%S}"
    rows: list[dict[str, Any]] = []
    if name:
        effective.keep_in(folder)
    with progress_bar("films") as report:
        probes = run_probe(
            films,
            training.task,
            protocols=PROTOCOLS,
            fold_count=folds,
            copies=copies,
            seed=training.seed,
            on_progress=report,
        )
        rows += [{"what": "1-nearest neighbour, no learning", **asdict(p)} for p in probes]
        for protocol in (PROTOCOL, AUGMENT_FIRST) if name else ():
            (summary,) = run_cross_validation(
                [str(name)],
                training,
                films,
                folder / protocol,
                fold_count=folds,
                protocol=protocol,
                copies=copies,
                on_progress=lambda label, done, total, protocol=protocol: report(  # type: ignore[misc]
                    f"{protocol}: {label}", done, total
                ),
            )
            accuracy = summary.mean_std["accuracy"]
            rows.append(
                {
                    "what": name,
                    "protocol": protocol,
                    "copies": copies,
                    "accuracy": accuracy and accuracy[0],
                    "auc": summary.pooled_auc.value,
                    "auc_interval": asdict(summary.pooled_auc),
                    "folds": folds,
                    "config": {**training.to_json(), "weights": training.weights_label()},
                    "environment": environment(),
                }
            )
    if as_json:
        print_json(rows)
        return
    print_table(
        ["what", "protocol", "copies", "accuracy", "AUC"],
        [
            [row["what"], PROTOCOL_TITLES[row["protocol"]], str(row["copies"])]
            + [_three(row[key]) for key in ("accuracy", "auc")]
            for row in rows
        ],
        title="What the split alone buys",
    )
    if name:
        console.print(f"studies {folder}", markup=False)


def _conclude_split(path: Path, report: "SplitReport", as_json: bool) -> None:
    if as_json:
        print_json({**asdict(report), "leaks": report.leaks})
    else:
        _print_split(report)
    if report.leaks:
        raise UserError(
            f"{path}: leaks: {len(report.shared_patients)} patients and "
            f"{len(report.duplicates)} pairs of near-duplicate films are on different sides"
        )


def _print_split(report: "SplitReport") -> None:
    counts = ", ".join(f"{side}: {count}" for side, count in sorted(report.films.items()))
    console.print(f"films by side: {counts}", markup=False, highlight=False)
    if report.unknown_patients:
        console.print(
            f"the patient of {report.unknown_patients} films is unknown; add a column patient",
            style="yellow",
        )
    if report.shared_patients:
        rows = [[patient, ", ".join(sides)] for patient, sides in report.shared_patients.items()]
        print_table(["patient on several sides", "sides"], rows)
    if report.duplicates:
        print_table(
            ["film", "side", "near-duplicate", "side", "correlation"],
            [
                [d.first, d.first_side, d.second, d.second_side, f"{d.correlation:.3f}"]
                for d in report.duplicates[:SHOWN_DUPLICATES]
            ],
            title=f"{len(report.duplicates)} pairs, the most alike first",
        )
    if not report.leaks:
        console.print("no patient is on several sides, and no film is there twice")


def _three(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.3f}"
