"""``hmc-fast evaluate``: metrics of a checkpoint on labelled films."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from hmc_fast.cli import options
from hmc_fast.cli.output import console, print_json, print_table, progress_bar
from hmc_fast.errors import UserError


def evaluate(
    checkpoint: options.Checkpoint,
    data: options.Data,
    include_seen: Annotated[
        bool, typer.Option(help="Count films that the model was trained on as well.")
    ] = False,
    backend: Annotated[str, typer.Option(help="auto, reference or triton.")] = "auto",
    precision: options.Precision = "fp32",
    batch_size: options.BatchSize = 8,
    out: Annotated[Path | None, typer.Option(help="CSV file for the predictions.")] = None,
    as_json: options.AsJson = False,
) -> None:
    """Metrics and pooled AUC with its interval, on films the model was not trained on.

    A checkpoint knows its training films by their pixels and leaves them out, unless
    --include-seen is given.

    Example: [bold]hmc-fast evaluate --checkpoint runs/a/model.safetensors --data mias[/bold]
    """
    import torch

    from hmc_fast.checkpoint import load_model
    from hmc_fast.data import TASKS, FilmCache, FilmDataset, read_mias
    from hmc_fast.evaluation import Predictions, predict_logits

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, metadata = load_model(checkpoint, backend=backend, device=device)
    cases, labels = TASKS[metadata.task].select(read_mias(data))
    cache = FilmCache(metadata.preprocessing)
    digests = set(metadata.training_films.values())
    with progress_bar("films") as report:
        seen = []
        for case in cases:
            seen.append(cache.digest(case.path) in digests)
            report("reading", 1, 2 * len(cases))
        keep = [i for i in range(len(cases)) if include_seen or not seen[i]]
        if not keep:
            raise UserError(
                f"{data}: the model was trained on all {len(cases)} films; give unseen films, or "
                "--include-seen for figures that say nothing about new patients"
            )
        kept_cases, kept_labels = [cases[i] for i in keep], [labels[i] for i in keep]
        logits = predict_logits(
            model,
            FilmDataset(kept_cases, kept_labels, cache),
            device=device,
            precision=precision,
            batch_size=batch_size,
            on_batch=lambda n: report("predicting", n, len(cases) + len(keep)),
        )
    predictions = Predictions.of(kept_cases, kept_labels, -1, logits, metadata.class_names)
    if out is not None:
        predictions.save(out)
    interval = predictions.auc_interval()
    result = {
        "checkpoint": str(checkpoint),
        "model": metadata.model.name,
        "task": metadata.task,
        "films": len(keep),
        "patients": len(set(predictions.patients)),
        "films_seen_in_training": sum(seen),
        "seen_films_counted": include_seen,
        "metrics": predictions.metrics(),
        "auc_interval": asdict(interval),
    }
    if as_json:
        print_json(result)
        return
    if any(seen):
        verb = "COUNTED: these figures flatter the model" if include_seen else "left out"
        console.print(f"{sum(seen)} films were seen in training, {verb}", style="yellow")
    values = ["undefined" if v is None else f"{v:.3f}" for v in predictions.metrics().values()]
    print_table(
        ["films", "patients", *predictions.metrics(), "AUC [95 % CI]"],
        [[str(len(keep)), str(len(set(predictions.patients))), *values, str(interval)]],
        title=f"{metadata.model.name}, task {metadata.task}",
    )
