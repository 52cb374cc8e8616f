"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

from hmc_fast.cli.choices import choice

# Words of options are written here again, and held to their tables by a test: the tables import
# PyTorch, for which a --help does not wait.
BACKENDS = ("auto", "reference", "cpu", "triton")
PRECISIONS = ("fp32", "bf16", "fp16")
MOST_FILMS = 2**16
"""At a time; beyond any memory."""
METHODS = ("gradcam", "gradcam++", "scorecam", "lesions", "scale", "all")

Data = Annotated[
    Path,
    typer.Option(
        "--data",
        help="MIAS folder (mdbNNN.pgm or .png films and Info.txt), or a CSV table of any films.",
    ),
]
AllowMissing = Annotated[
    bool, typer.Option("--allow-missing", help="Take a subset of MIAS: Info.txt may tell of more.")
]
AllowRaw = Annotated[
    bool, typer.Option("--allow-raw", help="Take DICOM images that are for processing as well.")
]
Checkpoint = Annotated[Path, typer.Option("--checkpoint", help="A model.safetensors of ours.")]
Checkpoints = Annotated[
    list[Path],
    typer.Option("--checkpoint", help="A model.safetensors of ours; repeat it for an ensemble."),
]
Out = Annotated[Path, typer.Option("--out", help="Folder for the results.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON on stdout.")]
FoldCount = Annotated[int, typer.Option("--folds", help="Number of patient-disjoint folds.")]
BatchSize = Annotated[
    int, typer.Option("--batch-size", min=1, max=MOST_FILMS, help="Films at a time.")
]
Precision = Annotated[str, choice("precision", PRECISIONS, help="Of the products.")]
Backend = Annotated[
    str, choice("backend", BACKENDS, help="What attention runs by; auto is the fastest here.")
]
Device = Annotated[
    str,
    typer.Option(
        "--device",
        metavar="[auto|cpu|cuda|cuda:NUMBER]",
        autocompletion=lambda: ["auto", "cpu", "cuda"],
        help="What the model runs on; auto is the GPU where there is one.",
    ),
]
Seed = Annotated[
    int,
    typer.Option("--seed", min=0, max=2**32 - 1, help="Seed of folds and of what is drawn."),
]
