"""``hmc-fast evaluate``: metrics of a checkpoint on labelled films."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from hmc_fast.cli import options
from hmc_fast.cli.config_file import Effective, takes_config
from hmc_fast.cli.film_limit import limits_films
from hmc_fast.cli.output import console, errors, print_json, print_table, progress_bar
from hmc_fast.errors import UserError


@takes_config
@limits_films
def evaluate(
    checkpoint: options.Checkpoints,
    data: options.Data,
    include_seen: Annotated[
        bool, typer.Option(help="Count films that the model was trained on as well.")
    ] = False,
    allow_missing: options.AllowMissing = False,
    allow_raw: options.AllowRaw = False,
    backend: options.Backend = "auto",
    precision: options.Precision = "fp32",
    batch_size: options.BatchSize = 8,
    out: Annotated[Path | None, typer.Option(help="CSV file for the predictions.")] = None,
    as_json: options.AsJson = False,
    *,
    effective: Effective,
) -> None:
    """Metrics and pooled AUC with its interval, on patients the model was not trained on.

    A checkpoint knows its training films by their pixels, and their patients by keys that tell no
    names. Films of these patients are left out unless --include-seen is given. Several checkpoints,
    such as the folds of a study, are an ensemble: the mean of their probabilities, on patients that
    none has seen.

    Example: [bold]hmc-fast evaluate --checkpoint runs/a/model.safetensors --data mias[/bold]
    """
    from hmc_fast.checkpoint import load_ensemble
    from hmc_fast.data import TASKS, FilmCache, FilmDataset, read_films
    from hmc_fast.devices import default_device
    from hmc_fast.evaluation import Predictions, ensemble, predict_logits
    from hmc_fast.evaluation.seen import seen_films
    from hmc_fast.files import refuse_overwrite
    from hmc_fast.inference import prepare, slower_precision

    if out is not None:
        refuse_overwrite(out, data, *checkpoint)
        effective.keep_beside(out)
    device = default_device()
    members = load_ensemble(checkpoint, backend=backend, device=device)
    metadata = members[0].metadata
    if note := slower_precision(precision, device):
        errors.print(note, style="yellow")
    films, labels = TASKS[metadata.task].select(read_films(data, allow_missing=allow_missing))
    cache = FilmCache(metadata.preprocessing, allow_raw=allow_raw)
    with progress_bar("films") as report:
        seen = seen_films(
            [member.metadata for member in members],
            films,
            cache,
            on_film=lambda n: report("reading", n, 2 * len(films)),
        )
        seen_patients = {
            c.patient_id for c, known in zip(films, seen.patients, strict=True) if known
        }
        keep = [i for i, known in enumerate(seen.patients) if include_seen or not known]
        if not keep:
            raise UserError(
                f"{data}: the model was trained on films of every patient; give unseen ones, or "
                "--include-seen for figures that say nothing about new patients"
            )
        kept_films, kept_labels = [films[i] for i in keep], [labels[i] for i in keep]
        total = len(films) + len(keep) * len(members)
        parts = []
        for member in members:
            logits = predict_logits(
                prepare(member.model, precision=precision),
                FilmDataset(kept_films, kept_labels, cache),
                device=device,
                precision=precision,
                batch_size=batch_size,
                on_batch=lambda n: report("predicting", n, total),
            )
            parts.append(
                Predictions.of(
                    kept_films,
                    kept_labels,
                    -1,
                    logits,
                    metadata.class_names,
                    bilateral=member.metadata.bilateral,
                )
            )
    predictions = parts[0] if len(parts) == 1 else ensemble(parts)
    if out is not None:
        predictions.save(out)
    interval = predictions.auc_interval()
    result = {
        "checkpoints": [str(path) for path in checkpoint],
        "model": metadata.model.name,
        "task": metadata.task,
        "films": len(keep),
        "patients": len(set(predictions.patients)),
        "films_seen_in_training": sum(seen.films),
        "patients_seen_in_training": len(seen_patients),
        "seen_films_counted": include_seen,
        "metrics": predictions.metrics(),
        "auc_interval": asdict(interval),
    }
    if as_json:
        print_json(result)
        return
    if seen_patients:
        verb = "COUNTED: these figures flatter the model" if include_seen else "left out"
        console.print(
            f"{sum(seen.films)} films, and {len(seen_patients)} patients, were seen in training, "
            f"{verb}",
            style="yellow",
        )
    values = ["undefined" if v is None else f"{v:.3f}" for v in predictions.metrics().values()]
    print_table(
        ["films", "patients", *predictions.metrics(), "AUC [95 % CI]"],
        [[str(len(keep)), str(len(set(predictions.patients))), *values, str(interval)]],
        title=f"{metadata.model.name}, task {metadata.task}",
    )
