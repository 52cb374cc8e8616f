"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

from hmc_fast.data.cases import TASKS
from hmc_fast.errors import UserError
from hmc_fast.models.registry import MODEL_NAMES

Data = Annotated[
    Path, typer.Option("--data", help="MIAS folder: mdbNNN.pgm or .png films and Info.txt.")
]
Checkpoint = Annotated[Path, typer.Option("--checkpoint", help="A model.safetensors of ours.")]
Out = Annotated[Path, typer.Option("--out", help="Folder for the results.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
Weights = Annotated[
    str,
    typer.Option(
        "--weights", help="Pretrained trunk: imagenet (downloads), none, or FILE.safetensors."
    ),
]
TaskName = Annotated[str, typer.Option("--task", help=f"One of {', '.join(TASKS)}.")]
Size = Annotated[int, typer.Option("--size", help="Side of the image, a multiple of 32.")]
Epochs = Annotated[int, typer.Option("--epochs", help="Passes over the training films.")]
BatchSize = Annotated[int, typer.Option("--batch-size", help="Films a step.")]
LearningRate = Annotated[float, typer.Option("--learning-rate", help="Peak rate of AdamW.")]
Precision = Annotated[str, typer.Option("--precision", help="fp32, bf16 or fp16 (mixed).")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of folds, order, augmentation, dropout.")]
FoldCount = Annotated[int, typer.Option("--folds", help="Number of patient-disjoint folds.")]


def trunk_weights(value: str) -> str | None:
    """The ``--weights`` value; a file must exist. Raises :class:`UserError` where it does not."""
    if value == "none":
        return None
    if value != "imagenet" and not Path(value).is_file():
        raise UserError(f"--weights {value}: no such file; name one, or imagenet, or none")
    return value


def model_name(value: str) -> str:
    """Raises :class:`UserError` for an unknown model."""
    if value not in MODEL_NAMES:
        raise UserError(f"unknown model {value!r}; choose one of {', '.join(MODEL_NAMES)}")
    return value
