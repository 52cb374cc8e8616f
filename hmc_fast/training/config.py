"""Settings of a training run; stored with every result."""

import math
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any

from hmc_fast.data import TASKS, Preprocessing
from hmc_fast.data.preprocessing import native_width
from hmc_fast.devices import PRECISIONS
from hmc_fast.errors import UserError
from hmc_fast.models import model_entry

SCHEDULES = ("cosine", "constant")
FILM_SIZE, NATIVE_SIZE = 224, 1024
"""Rows of the image by default: of a whole film in a square, and of a breast at native scale."""


def _setting(default: Any, text: str, kind: type | None = None, **bounds: float) -> Any:
    """A field with its description, and the bounds that a command line checks first.

    ``kind`` is the type of values other than a default of None.
    """
    return field(
        default=default, metadata={"help": text, "kind": kind or type(default), "bounds": bounds}
    )


@dataclass(frozen=True)
class TrainingConfig:
    """How models are trained. The last epoch's parameters are kept: nothing is selected on a fold.

    Each field carries its description, which is also the help of the option of that name.

    Models with a lesion head see breasts at native scale (:class:`hmc_fast.data.Preprocessing`);
    their head is fitted to the lesions' circles, and ``head_epochs`` take the place of ``epochs``.

    Raises:
        UserError: a value is out of range.
    """

    task: str = _setting("malignant", "What films are told apart by.")
    size: int | None = _setting(
        None,
        "Rows of the image, a multiple of 32; by default 1024 with a lesion head, 224 without.",
        kind=int,
    )
    width: int | None = _setting(
        None,
        "Columns of the image, a multiple of 32; by default as many as rows, 5/8 of them with "
        "--native.",
        kind=int,
    )
    native: bool = _setting(
        False,
        "Show the breast alone, facing left, in its own greys, the film's longer side as --size "
        "pixels; models with a lesion head always see films so.",
    )
    epochs: int = _setting(10, "Passes over the training films; without a lesion head.")
    head_epochs: int = _setting(
        0,
        "Passes from the fitted lesion head on, in which attention and classifier learn; 0 keeps "
        "the fit alone.",
        min=0,
    )
    train_trunk: bool = _setting(
        False, "Train the trunk and the lesion maps in the --head-epochs too."
    )
    bilateral: bool = _setting(
        True, "With a lesion head, compare each film with the other breast: 2v - v_mate."
    )
    at_specificity: float | None = _setting(
        None,
        "With a lesion head, store the threshold of this specificity, chosen on out-of-fold scores "
        "of the training films; predict decides by it.",
        kind=float,
    )
    batch_size: int = _setting(8, "Films a step.", min=1)
    learning_rate: float = _setting(1e-4, "Peak rate of AdamW.")
    schedule: str = _setting(
        "cosine", "The rate after the warm-up: a half cosine down to zero, or constant."
    )
    warmup_epochs: int = _setting(
        0, "So many of the epochs, the first ones, rise linearly to the rate.", min=0
    )
    weight_decay: float = _setting(1e-2, "Weight decay of AdamW.", min=0)
    dropout: float = _setting(0.0, "Probability of dropout before the classifier.")
    weights: str | None = _setting(
        None,
        "Pretrained trunk: imagenet (downloads), none, or FILE.safetensors; for models of several "
        "trunks as resnet50=FILE,vgg16=imagenet, where other trunks start at random.",
        kind=str,
    )
    precision: str = _setting("fp32", "Of the products; parameters stay fp32.")
    augment: bool = _setting(True, "Random flips, rotations, shifts and scales.")
    balance: bool = _setting(True, "Weight the loss by inverse class frequency.")
    crop_breast: bool = _setting(False, "Keep the breast's box alone.")
    face_left: bool = _setting(False, "Mirror films whose chest wall is at the right.")
    average_flips: bool = _setting(False, "Predict the mean over a film and its mirror image.")
    clahe: bool = _setting(False, "Equalise the local contrast of films (CLAHE; needs OpenCV).")
    lesion_weight: float = _setting(
        0.0, "Weight of the loss that draws the class activation map into the lesion's circle."
    )
    crop_epochs: int = _setting(
        0, "So many of the epochs, the first ones, see crops around lesions instead of films."
    )
    seed: int = _setting(
        0,
        "Seed of folds, initialisation, order, augmentation and dropout.",
        min=0,
        max=2**32 - 1,
    )

    def __post_init__(self) -> None:
        for setting in fields(self):
            value = getattr(self, setting.name)
            if isinstance(value, float) and not math.isfinite(value):
                words = setting.name.replace("_", " ")
                raise UserError(f"{words} is {value}, needs to be a finite number")
        self._preprocessing(self.native)
        checks = (
            (self.task in TASKS, f"task {self.task!r} is none of {', '.join(TASKS)}"),
            (
                self.precision in PRECISIONS,
                f"precision {self.precision!r} is none of fp32, bf16, fp16",
            ),
            (
                self.schedule in SCHEDULES,
                f"schedule {self.schedule!r} is none of {', '.join(SCHEDULES)}",
            ),
            (self.warmup_epochs >= 0, f"warm-up is {self.warmup_epochs}, needs at least 0 epochs"),
            (self.epochs >= 1, f"epochs is {self.epochs}, needs at least 1"),
            (self.batch_size >= 2, f"batch size is {self.batch_size}, needs at least 2"),
            (self.weight_decay >= 0, f"weight decay is {self.weight_decay}, needs at least 0"),
            (
                self.learning_rate > 0,
                f"learning rate is {self.learning_rate}, needs to be positive",
            ),
            (
                self.at_specificity is None or 0 < self.at_specificity < 1,
                f"the operating point's specificity is {self.at_specificity}, needs to lie between "
                "0 and 1",
            ),
            (0 <= self.dropout < 1, f"dropout is {self.dropout}, needs 0 <= dropout < 1"),
            (
                0 <= self.crop_epochs < self.epochs,
                f"crop epochs are {self.crop_epochs}, need to be fewer than the "
                f"{self.epochs} epochs, of which they are the first",
            ),
            (self.lesion_weight >= 0, f"lesion weight is {self.lesion_weight}, needs at least 0"),
            (self.head_epochs >= 0, f"head epochs are {self.head_epochs}, need at least 0"),
            (
                not (self.native and self.crop_epochs),
                "crops are enlarged, which --native does not do; use --crop-epochs 0",
            ),
        )
        for holds, message in checks:
            if not holds:
                raise UserError(message)

    def preprocessing(self, model: str) -> Preprocessing:
        """How films become inputs of the named model.

        Raises :class:`UserError` where the settings exclude each other.
        """
        return self._preprocessing(self.native or model_entry(model).config.lesion_head)

    def epochs_of(self, model: str) -> int:
        """Epochs of the named model's training by gradients."""
        return self.head_epochs if model_entry(model).config.lesion_head else self.epochs

    def rate_in(self, epoch: int, epochs: int) -> float:
        """The learning rate in ``epoch``, from 0, of so many epochs."""
        if epoch < self.warmup_epochs:
            return self.learning_rate * (epoch + 1) / (self.warmup_epochs + 1)
        if self.schedule == "constant":
            return self.learning_rate
        progress = (epoch - self.warmup_epochs) / (epochs - self.warmup_epochs)
        return self.learning_rate * (1 + math.cos(math.pi * progress)) / 2

    def _preprocessing(self, native: bool) -> Preprocessing:
        height = FILM_SIZE if self.size is None else self.size
        if not native:
            return Preprocessing(
                height,
                height if self.width is None else self.width,
                crop_breast=self.crop_breast,
                face_left=self.face_left,
                average_flips=self.average_flips,
                clahe=self.clahe,
            )
        height = NATIVE_SIZE if self.size is None else self.size
        width = native_width(height) if self.width is None else self.width
        return Preprocessing(
            height, width, average_flips=self.average_flips, native=True, clahe=self.clahe
        )

    def weights_for(self, trunk: str) -> str | None:
        """What a model with this trunk starts from."""
        if self.weights is None or not _by_trunk(self.weights):
            return self.weights
        return dict(part.split("=", 1) for part in self.weights.split(",")).get(trunk)

    def weights_label(self) -> str | None:
        """``weights`` with files by their names alone."""
        if self.weights is None or not _by_trunk(self.weights):
            return self.weights and Path(self.weights).name
        pairs = (part.split("=", 1) for part in self.weights.split(","))
        return ",".join(f"{trunk}={Path(value).name}" for trunk, value in pairs)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def _by_trunk(weights: str) -> bool:
    return "=" in weights and not Path(weights).exists()
