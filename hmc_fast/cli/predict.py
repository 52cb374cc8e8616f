"""``hmc-fast predict``: class probabilities of films."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
import typer
from numpy.typing import NDArray

from hmc_fast.cli import options
from hmc_fast.cli.output import console, errors, print_json, print_table, progress_bar
from hmc_fast.errors import UserError

if TYPE_CHECKING:
    from hmc_fast.data import Film, Preprocessing
    from hmc_fast.inference import PreparedModel


def predict(
    files: Annotated[list[Path], typer.Argument(help="PGM, PNG or DICOM films.")],
    checkpoint: options.Checkpoints,
    backend: Annotated[str, typer.Option(help="auto, reference or triton.")] = "auto",
    precision: options.Precision = "fp32",
    bilateral: Annotated[
        bool | None,
        typer.Option(
            "--bilateral/--own", help="Compare films with the other breast's, or none of them."
        ),
    ] = None,
    as_json: options.AsJson = False,
) -> None:
    """Class probabilities of one film or many. Research only, no diagnosis.

    A checkpoint that compares breasts takes a patient's films together: 2v - v_mate, where v is a
    film's own score and v_mate that of the other breast in the same view. DICOM says patient, side
    and view in its header, MIAS by the film's number; a film without its mate keeps v, and the rule
    that gave each result is said. Several checkpoints, such as the folds of a study, give the mean
    of their probabilities.

    Examples: [bold]hmc-fast predict film.dcm --checkpoint runs/a/model.safetensors --json[/bold];
    [bold]hmc-fast predict left.dcm right.dcm --checkpoint runs/a/model.safetensors[/bold]
    """
    from hmc_fast.checkpoint import load_ensemble
    from hmc_fast.data.identity import film_of
    from hmc_fast.devices import default_device
    from hmc_fast.inference import prepare, slower_precision

    device = default_device()
    members = load_ensemble(checkpoint, backend=backend, device=device)
    metadata = members[0].metadata
    compare = metadata.bilateral if bilateral is None else bilateral
    if compare and len(metadata.class_names) != 2:
        raise UserError("--bilateral compares the scores of two classes; the checkpoint has more")
    models = [prepare(member.model, precision=precision) for member in members]
    del members  # so that an ensemble is not held twice
    if note := slower_precision(precision, device):
        errors.print(note, style="yellow")
    with progress_bar("films") as report:
        logits = [
            _logits(
                models, metadata.preprocessing, path, lambda: report("predicting", 1, len(files))
            )
            for path in files
        ]
    probabilities, rules = _probabilities(
        np.stack(logits, 1), [film_of(path) for path in files], compare
    )
    films: list[dict[str, Any]] = [
        {
            "file": str(path),
            "probabilities": dict(zip(metadata.class_names, row.tolist(), strict=True)),
            "predicted": metadata.class_names[int(row.argmax())],
            "rule": rule,
        }
        for path, row, rule in zip(files, probabilities, rules, strict=True)
    ]
    if as_json:
        print_json(
            {
                "model": metadata.model.to_json(),
                "checkpoints": len(models),
                "task": metadata.task,
                "preprocessing": metadata.preprocessing.to_json(),
                "precision": precision,
                "films": films,
            }
        )
        return
    rows = [
        [
            film["file"],
            film["predicted"],
            *(f"{p:.4f}" for p in film["probabilities"].values()),
            film["rule"],
        ]
        for film in films
    ]
    print_table(["film", "predicted", *(f"p({c})" for c in metadata.class_names), "rule"], rows)
    console.print("Research software: these are no diagnoses.", style="dim")


def _logits(
    models: Sequence["PreparedModel"],
    preprocessing: "Preprocessing",
    path: Path,
    on_film: Callable[[], object],
) -> NDArray[np.float32]:
    """The models' logits of one film, ``[models, classes]``."""
    import torch

    from hmc_fast.data import read_pixels
    from hmc_fast.evaluation import film_logits

    device = next(models[0].parameters()).device
    pixels = read_pixels(path)
    try:
        image = preprocessing(pixels).to(device)[None]
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    with torch.inference_mode():
        logits = torch.cat([film_logits(model, image, preprocessing) for model in models])
    if not logits.isfinite().all():
        raise UserError(f"{path}: the output is not finite; use --precision fp32")
    on_film()
    values: NDArray[np.float32] = logits.cpu().numpy()
    return values


def _probabilities(
    logits: NDArray[np.float32], films: Sequence["Film"], compare: bool
) -> tuple[NDArray[np.float64], Sequence[str]]:
    """Mean probabilities ``[films, classes]`` of logits ``[members, films, classes]``; rules."""
    from scipy.special import softmax

    from hmc_fast.evaluation.bilateral import OWN_RULE, compare_logits

    rules: Sequence[str] = [OWN_RULE] * len(films)
    members = []
    for member in logits:
        if compare:
            compared, rules = compare_logits(member, films)
        members.append(softmax(compared if compare else member.astype(np.float64), axis=1))
    return np.mean(members, axis=0), rules
