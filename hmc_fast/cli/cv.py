"""``hmc-fast cv``: cross-validate models on patient-disjoint folds."""

from pathlib import Path
from typing import Annotated

import typer

from hmc_fast.cli import options
from hmc_fast.cli.output import console, print_json, print_table, progress_bar


def cv(
    data: options.Data,
    out: options.Out,
    model: Annotated[list[str], typer.Option(help="Model to train; repeatable.")],
    folds: options.FoldCount = 5,
    folds_file: Annotated[
        Path | None, typer.Option(help="A saved folds.json to use instead of new folds.")
    ] = None,
    task: options.TaskName = "malignant",
    size: options.Size = 224,
    epochs: options.Epochs = 10,
    batch_size: options.BatchSize = 8,
    learning_rate: options.LearningRate = 1e-4,
    dropout: Annotated[float, typer.Option(help="Before the classifier.")] = 0.0,
    weights: options.Weights = "none",
    precision: options.Precision = "fp32",
    seed: options.Seed = 0,
    as_json: options.AsJson = False,
) -> None:
    """Train every model on every fold; the same command continues an interrupted study.

    The study folder holds configuration, folds, checkpoints, learning curves and out-of-fold
    predictions. Nothing is selected on a held-out fold: the last epoch counts.

    Example: [bold]hmc-fast cv --data mias --out study --model hmc_net --model resnet50[/bold]
    """
    from hmc_fast.data import read_mias
    from hmc_fast.evaluation import METRIC_NAMES
    from hmc_fast.training import TrainingConfig, run_cross_validation

    config = TrainingConfig(
        task=task,
        size=size,
        epochs=epochs,
        batch_size=batch_size,
        learning_rate=learning_rate,
        dropout=dropout,
        weights=options.trunk_weights(weights),
        precision=precision,
        seed=seed,
    )
    models = [options.model_name(name) for name in model]
    with progress_bar("films") as report:
        summaries = run_cross_validation(
            models,
            config,
            read_mias(data),
            out,
            fold_count=folds,
            folds_file=folds_file,
            on_progress=report,
        )
    if as_json:
        print_json([summary.to_json() for summary in summaries])
        return
    rows = []
    for summary in summaries:
        values = [summary.mean_std[name] for name in METRIC_NAMES]
        cells = [f"{v[0]:.3f} ± {v[1]:.3f}" if v else "undefined" for v in values]
        rows.append([summary.model, *cells, str(summary.pooled_auc)])
    print_table(
        ["model", *METRIC_NAMES, "pooled AUC [95 % CI]"],
        rows,
        title=f"Patient-disjoint folds, mean ± std over {len(summaries[0].folds)} folds",
    )
    console.print(f"study {out}", markup=False)
