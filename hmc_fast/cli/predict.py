"""``hmc-fast predict``: class probabilities of films."""

from pathlib import Path
from typing import Annotated, Any

import typer

from hmc_fast.cli import options
from hmc_fast.cli.output import console, print_json, print_table, progress_bar
from hmc_fast.errors import UserError


def predict(
    files: Annotated[list[Path], typer.Argument(help="PGM, PNG or DICOM films.")],
    checkpoint: options.Checkpoints,
    backend: Annotated[str, typer.Option(help="auto, reference or triton.")] = "auto",
    precision: options.Precision = "fp32",
    as_json: options.AsJson = False,
) -> None:
    """Class probabilities of one film or many. Research only, no diagnosis.

    Several checkpoints, such as the folds of a study, give the mean of their probabilities.

    Example: [bold]hmc-fast predict film.dcm --checkpoint runs/a/model.safetensors --json[/bold]
    """
    import torch

    from hmc_fast.checkpoint import load_ensemble
    from hmc_fast.data import read_pixels
    from hmc_fast.devices import autocast, default_device
    from hmc_fast.evaluation import film_logits

    device = default_device()
    members = load_ensemble(checkpoint, backend=backend, device=device)
    metadata = members[0].metadata
    films: list[dict[str, Any]] = []
    with progress_bar("films") as report, torch.inference_mode(), autocast(device, precision):
        for path in files:
            image = metadata.preprocessing(read_pixels(path)).to(device)[None]
            logits = torch.cat(
                [film_logits(member.model, image, metadata.preprocessing) for member in members]
            )
            if not logits.isfinite().all():
                raise UserError(f"{path}: the output is not finite; use --precision fp32")
            probabilities = logits.softmax(-1).mean(0).tolist()
            films.append(
                {
                    "file": str(path),
                    "probabilities": dict(zip(metadata.class_names, probabilities, strict=True)),
                    "predicted": metadata.class_names[probabilities.index(max(probabilities))],
                }
            )
            report("predicting", 1, len(files))
    if as_json:
        print_json(
            {
                "model": metadata.model.to_json(),
                "checkpoints": len(members),
                "task": metadata.task,
                "preprocessing": metadata.preprocessing.to_json(),
                "precision": precision,
                "films": films,
            }
        )
        return
    rows = [
        [film["file"], film["predicted"], *(f"{p:.4f}" for p in film["probabilities"].values())]
        for film in films
    ]
    print_table(["film", "predicted", *(f"p({c})" for c in metadata.class_names)], rows)
    console.print("Research software: these are no diagnoses.", style="dim")
