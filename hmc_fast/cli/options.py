"""Options that several commands share."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from hmc_fast.bench.peers import PEERS, peer_names
from hmc_fast.data.tasks import TASKS
from hmc_fast.errors import UserError
from hmc_fast.models.registry import MODEL_NAMES, trunk_of

TRUNKS = tuple(dict.fromkeys(trunk_of(name) for name in MODEL_NAMES))

Data = Annotated[
    Path, typer.Option("--data", help="MIAS folder: mdbNNN.pgm or .png films and Info.txt.")
]
Checkpoint = Annotated[Path, typer.Option("--checkpoint", help="A model.safetensors of ours.")]
Checkpoints = Annotated[
    list[Path],
    typer.Option("--checkpoint", help="A model.safetensors of ours; repeat it for an ensemble."),
]
Out = Annotated[Path, typer.Option("--out", help="Folder for the results.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
Weights = Annotated[
    str,
    typer.Option(
        "--weights",
        help="Pretrained trunk: imagenet (downloads), none, or FILE.safetensors; by trunk as "
        "resnet50=FILE,vgg16=imagenet.",
    ),
]
TaskName = Annotated[str, typer.Option("--task", help=f"One of {', '.join(TASKS)}.")]
Size = Annotated[int, typer.Option("--size", help="Side of the image, a multiple of 32.")]
Epochs = Annotated[int, typer.Option("--epochs", help="Passes over the training films.")]
BatchSize = Annotated[int, typer.Option("--batch-size", min=1, help="Films a step.")]
LearningRate = Annotated[float, typer.Option("--learning-rate", help="Peak rate of AdamW.")]
Precision = Annotated[str, typer.Option("--precision", help="fp32, bf16 or fp16 (mixed).")]
Seed = Annotated[
    int,
    typer.Option(
        "--seed", min=0, max=2**32 - 1, help="Seed of folds, order, augmentation, dropout."
    ),
]
Dropout = Annotated[float, typer.Option("--dropout", help="Before the classifier.")]
Augment = Annotated[
    bool, typer.Option("--augment/--no-augment", help="Random flips, rotations, shifts, scales.")
]
Balance = Annotated[
    bool, typer.Option("--balance/--no-balance", help="Weight the loss by inverse class frequency.")
]
CropBreast = Annotated[bool, typer.Option("--crop-breast", help="Keep the breast's box alone.")]
FaceLeft = Annotated[
    bool, typer.Option("--face-left", help="Mirror films whose chest wall is at the right.")
]
AverageFlips = Annotated[
    bool, typer.Option("--average-flips", help="Predict the mean over a film and its mirror image.")
]
LesionWeight = Annotated[
    float,
    typer.Option(
        "--lesion-weight", help="Of the loss that draws attention into the lesion's circle."
    ),
]
CropEpochs = Annotated[
    int,
    typer.Option("--crop-epochs", help="The first epochs that see crops around lesions instead."),
]
_PEER_LINES = {p.name: f"{p.name} ({p.help})" for p in PEERS}


def _peers_help(names: Sequence[str]) -> str:
    return f"One of {', '.join(_PEER_LINES[name] for name in names)}; repeatable."


OperatorPeers = Annotated[
    list[str] | None,
    typer.Option("--peer", "--backend", help=_peers_help(peer_names("operator", "block"))),
]
ModelPeers = Annotated[
    list[str] | None,
    typer.Option("--peer", "--implementation", help=_peers_help(peer_names("model"))),
]
Precisions = Annotated[
    list[str] | None,
    typer.Option("--precision", "--dtype", help="bf16, fp16 or fp32; repeatable."),
]
BenchOut = Annotated[
    Path | None,
    typer.Option("--out", help="Folder for record and reports; the main job resumes its folds."),
]
FoldCount = Annotated[int, typer.Option("--folds", help="Number of patient-disjoint folds.")]


def trunk_weights(value: str) -> str | None:
    """The ``--weights`` value; files must exist. Raises :class:`UserError` where one does not."""
    if value == "none":
        return None
    if "=" not in value or Path(value).is_file():
        _check_weights(value)
        return value
    chosen = []
    for part in value.split(","):
        trunk, _, source = part.partition("=")
        if trunk not in TRUNKS or not source:
            raise UserError(
                f"--weights {part}: needs TRUNK=FILE, where TRUNK is one of {', '.join(TRUNKS)}"
            )
        if source != "none":
            _check_weights(source)
            chosen.append(part)
    return ",".join(chosen) or None


def _check_weights(value: str) -> None:
    if value != "imagenet" and not Path(value).is_file():
        raise UserError(f"--weights {value}: no such file; name one, or imagenet, or none")


def model_name(value: str) -> str:
    """Raises :class:`UserError` for an unknown model."""
    if value not in MODEL_NAMES:
        raise UserError(f"unknown model {value!r}; choose one of {', '.join(MODEL_NAMES)}")
    return value
