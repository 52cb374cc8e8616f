"""``hmc-fast cv``: cross-validate models, by default on patient-disjoint folds."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hmc_fast.cli import options, training_options
from hmc_fast.cli.choices import choice
from hmc_fast.cli.config_file import Effective, takes_config
from hmc_fast.cli.film_limit import limits_films
from hmc_fast.cli.output import console, errors, print_json, print_table, progress_bar
from hmc_fast.data.folds import PROTOCOL, PROTOCOL_TITLES, PROTOCOLS
from hmc_fast.errors import UserError
from hmc_fast.training import TrainingConfig

if TYPE_CHECKING:
    from hmc_fast.data import Film
    from hmc_fast.study import StudySummary

MOST_NAMED = 5
"""Pairs of films that look like copies; more are counted."""


@takes_config
@limits_films
@training_options.takes_training()
def cv(
    data: options.Data,
    out: options.Out,
    *,
    model: training_options.ModelNames = None,
    models: Annotated[str, typer.Option(help="Models to train, separated by commas.")] = "",
    folds: options.FoldCount = 5,
    repeats: Annotated[int, typer.Option(help="Repeat everything with other folds and seeds.")] = 1,
    protocol: Annotated[
        str, choice("protocol", PROTOCOLS, help="How folds are made; all but the first leak.")
    ] = PROTOCOL,
    copies: Annotated[
        int | None, typer.Option(help="Rotated copies a film; by default 45 under augment-first.")
    ] = None,
    folds_file: Annotated[
        Path | None, typer.Option(help="A saved folds.json to use instead of new folds.")
    ] = None,
    job: Annotated[
        list[int] | None,
        typer.Option(help="Run this job alone, from 0; repeatable. For a cluster's scheduler."),
    ] = None,
    list_jobs: Annotated[bool, typer.Option("--list-jobs", help="Print the jobs, run none.")] = (
        False
    ),
    allow_missing: options.AllowMissing = False,
    training: TrainingConfig,
    logger: training_options.Loggers = None,
    as_json: options.AsJson = False,
    effective: Effective,
) -> None:
    """Train every model on every fold; the same command continues an interrupted study.

    The study folder holds configuration, folds, checkpoints, learning curves and out-of-fold
    predictions. Nothing is selected on a held-out fold: the last epoch counts.

    The same command started several times, on one machine or on several that share the folder,
    divides the jobs (models × repeats × folds) among the processes. Under a scheduler give each its
    own --job, as in [bold]--job $SLURM_ARRAY_TASK_ID[/bold]; the plain command sums up at the end.

    Example: [bold]hmc-fast cv --data mias --out study --models hmc_net,resnet50,vgg16[/bold]
    """
    from hmc_fast.data import read_films
    from hmc_fast.study import plan_study, run_cross_validation
    from hmc_fast.study.folder import STUDY_FILE

    names = _model_names(model, models)
    films = read_films(data, allow_missing=allow_missing)
    partition: dict[str, Any] = {
        "fold_count": folds,
        "repeats": repeats,
        "protocol": protocol,
        "copies": copies,
        "folds_file": folds_file,
    }
    if list_jobs:
        jobs = plan_study(names, training, films, out, **partition).jobs
        listed = [
            {"job": number, "what": job.label, "finished": job.finished}
            for number, job in enumerate(jobs)
        ]
        _print_jobs(listed, as_json)
        return
    if not job and protocol == PROTOCOL and not (out / STUDY_FILE).exists():
        _warn_of_copies(films)
    effective.keep_in(out)
    with progress_bar("films") as report:
        summaries = run_cross_validation(
            names,
            training,
            films,
            out,
            only_jobs=job or None,
            loggers=logger or (),
            on_progress=report,
            **partition,
        )
    if as_json:
        print_json([summary.to_json() for summary in summaries])
        return
    if summaries:
        _print_summaries(summaries)
    if len(summaries) < len(names):
        console.print("other jobs of this study are not finished yet", style="yellow")
    console.print(f"study {out}", markup=False)


def _warn_of_copies(films: list["Film"]) -> None:
    from hmc_fast.study.split_check import copies_across_patients

    with progress_bar("films") as report:
        copies = copies_across_patients(films, report)
    for pair in copies[:MOST_NAMED]:
        errors.print(
            f"films {pair.first} and {pair.second} look like copies of one film (correlation "
            f"{pair.correlation:.2f}) but are of patients {pair.first_side} and "
            f"{pair.second_side}: if they are, give both one patient",
            style="yellow",
            markup=False,
        )
    if len(copies) > MOST_NAMED:
        errors.print(f"and {len(copies) - MOST_NAMED} more such pairs", style="yellow")


def _model_names(single: list[str] | None, listed: str) -> list[str]:
    names = [*(single or []), *(name.strip() for name in listed.split(",") if name.strip())]
    if not names:
        raise UserError("no model is named; use --models hmc_net,resnet50 or --model hmc_net")
    return [training_options.model_name(name) for name in dict.fromkeys(names)]


def _print_jobs(listed: list[dict[str, Any]], as_json: bool) -> None:
    if as_json:
        print_json(listed)
        return
    print_table(
        ["job", "what", "finished"],
        [[str(job["job"]), job["what"], "yes" if job["finished"] else "no"] for job in listed],
    )


def _print_summaries(summaries: list["StudySummary"]) -> None:
    from hmc_fast.evaluation import METRIC_NAMES

    rows = []
    for summary in summaries:
        values = [summary.mean_std[name] for name in METRIC_NAMES]
        cells = [f"{v[0]:.3f} ± {v[1]:.3f}" if v else "undefined" for v in values]
        rows.append([summary.model, *cells, str(summary.pooled_auc)])
    print_table(
        ["model", *METRIC_NAMES, "pooled AUC [95 % CI]"],
        rows,
        title=f"{PROTOCOL_TITLES[summaries[0].protocol]}, mean ± std over "
        f"{len(summaries[0].folds)} folds",
    )
