"""``hmc-fast predict``: class probabilities of films."""

from pathlib import Path
from typing import Annotated, Any

import typer

from hmc_fast.cli import options
from hmc_fast.cli.output import console, print_json, print_table, progress_bar


def predict(
    files: Annotated[list[Path], typer.Argument(help="PGM, PNG or DICOM films.")],
    checkpoint: options.Checkpoint,
    backend: Annotated[str, typer.Option(help="auto, reference or triton.")] = "auto",
    precision: options.Precision = "fp32",
    as_json: options.AsJson = False,
) -> None:
    """Class probabilities of one film or many. Research only, no diagnosis.

    Example: [bold]hmc-fast predict film.dcm --checkpoint runs/a/model.safetensors --json[/bold]
    """
    import torch

    from hmc_fast.checkpoint import load_model
    from hmc_fast.data import read_film
    from hmc_fast.evaluation.predict import autocast

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model, metadata = load_model(checkpoint, backend=backend, device=device)
    films: list[dict[str, Any]] = []
    with progress_bar("films") as report, torch.inference_mode(), autocast(device, precision):
        for path in files:
            image = metadata.preprocessing(read_film(path)).to(device)
            probabilities = model(image[None]).float().softmax(-1)[0].tolist()
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
