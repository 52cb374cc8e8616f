"""``hmc-fast train``: train one model, one fold held out or none."""

from typing import Annotated

import typer

from hmc_fast.cli import options, training_options
from hmc_fast.cli.config_file import Effective, takes_config
from hmc_fast.cli.film_limit import limits_films
from hmc_fast.cli.output import console, print_json, print_table, progress_bar
from hmc_fast.errors import UserError
from hmc_fast.training import TrainingConfig


@takes_config
@limits_films
@training_options.takes_training()
def train(
    data: options.Data,
    out: options.Out,
    *,
    model: training_options.ModelName = "hmc_net",
    folds: options.FoldCount = 5,
    hold_out: Annotated[
        int, typer.Option(help="Fold to hold out, from 0; -1 trains on all films.")
    ] = 0,
    devices: Annotated[str, typer.Option(help="Devices per node, a number or auto.")] = "auto",
    num_nodes: Annotated[int, typer.Option(min=1, help="Number of machines.")] = 1,
    allow_missing: options.AllowMissing = False,
    training: TrainingConfig,
    logger: training_options.Loggers = None,
    as_json: options.AsJson = False,
    effective: Effective,
) -> None:
    """Train one model into a folder: checkpoint, learning curve, held-out predictions.

    Example: [bold]hmc-fast train --data mias --out runs/a --model hmc_net --epochs 20[/bold]
    """
    from hmc_fast.data import TASKS, FilmCache, make_folds, read_films
    from hmc_fast.training.progress import TrainingProgress
    from hmc_fast.training.train import MODEL_FILE, RESULT_FILE, TrainingJob
    from hmc_fast.training.train import train as run_training

    if (out / RESULT_FILE).exists():
        raise UserError(f"{out}: holds a finished training; use another folder")
    if not -1 <= hold_out < folds:
        raise UserError(
            f"--hold-out {hold_out}: needs a fold from 0 to {folds - 1}, or -1 for none"
        )
    chosen_task = TASKS[training.task]
    films, labels = chosen_task.select(read_films(data, allow_missing=allow_missing))
    partition = make_folds(films, labels, chosen_task, folds, training.seed)
    train_index, test_index = partition.split(films, hold_out)
    job = TrainingJob(
        model,
        training,
        films,
        labels,
        train_index,
        test_index,
        hold_out,
        partition.protocol,
    )
    effective.keep_in(out)
    cache = FilmCache(training.preprocessing(model))
    with progress_bar("films") as report:
        epochs = training.epochs_of(model)
        progress = TrainingProgress(model, epochs, job.films_to_train, report)
        result = run_training(
            job,
            out,
            cache,
            devices=devices if devices == "auto" else _whole_number(devices),
            num_nodes=num_nodes,
            loggers=logger or (),
            on_films=progress.films,
            on_epoch=progress.epoch,
        )
    if not result:  # only one of several processes reports
        return
    if as_json:
        print_json(result)
        return
    if result.get("metrics"):
        values = [
            "undefined" if value is None else f"{value:.3f}" for value in result["metrics"].values()
        ]
        print_table(
            list(result["metrics"]), [values], title=f"Held-out fold {hold_out}, patient-disjoint"
        )
    console.print(f"checkpoint {out / MODEL_FILE}", markup=False)


def _whole_number(value: str) -> int:
    if not value.isdigit() or int(value) < 1:
        raise UserError(f"--devices {value}: needs a number of devices, or auto")
    return int(value)
