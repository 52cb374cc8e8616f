"""Settings of a training run; stored with every result."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hmc_fast.data import TASKS, Preprocessing
from hmc_fast.devices import PRECISIONS
from hmc_fast.errors import UserError


@dataclass(frozen=True)
class TrainingConfig:
    """How models are trained. The last epoch's parameters are kept: nothing is selected on a fold.

    Args:
        task: one of :data:`hmc_fast.data.TASKS`.
        size: films become ``size``² pixels; a multiple of 32.
        epochs: passes over the training films.
        batch_size: films a step.
        learning_rate: peak of AdamW's rate; it follows a half cosine to zero over the epochs.
        weight_decay: of AdamW.
        dropout: before the classifier.
        weights: None, ``"imagenet"`` or a safetensors file with the trunk; or, for models of
            several trunks, ``"resnet50=FILE,vgg16=imagenet"``, where other trunks start at random.
        precision: ``fp32``, ``bf16`` or ``fp16`` (mixed).
        augment: random flips, rotations, shifts and scales on training films.
        balance: weight the loss by inverse class frequency.
        crop_breast: as in :class:`hmc_fast.data.Preprocessing`.
        face_left: as in :class:`hmc_fast.data.Preprocessing`.
        average_flips: as in :class:`hmc_fast.data.Preprocessing`.
        lesion_weight: of the auxiliary loss that asks the class activation map of a film with a
            known lesion to lie in its circle; 0 leaves it out.
        crop_epochs: so many of the epochs, the first ones, train on crops around the lesions (see
            :mod:`hmc_fast.data.crops`) in place of whole films.
        seed: of initialisation, order, augmentation and dropout.

    Raises:
        UserError: a value is out of range.
    """

    task: str = "malignant"
    size: int = 224
    epochs: int = 10
    batch_size: int = 8
    learning_rate: float = 1e-4
    weight_decay: float = 1e-2
    dropout: float = 0.0
    weights: str | None = None
    precision: str = "fp32"
    augment: bool = True
    balance: bool = True
    crop_breast: bool = False
    face_left: bool = False
    average_flips: bool = False
    lesion_weight: float = 0.0
    crop_epochs: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        self.preprocessing()
        checks = (
            (self.task in TASKS, f"task {self.task!r} is none of {', '.join(TASKS)}"),
            (
                self.precision in PRECISIONS,
                f"precision {self.precision!r} is none of fp32, bf16, fp16",
            ),
            (self.epochs >= 1, f"epochs is {self.epochs}, needs at least 1"),
            (self.batch_size >= 2, f"batch size is {self.batch_size}, needs at least 2"),
            (
                self.learning_rate > 0,
                f"learning rate is {self.learning_rate}, needs to be positive",
            ),
            (0 <= self.dropout < 1, f"dropout is {self.dropout}, needs 0 <= dropout < 1"),
            (
                0 <= self.crop_epochs < self.epochs,
                f"crop epochs are {self.crop_epochs}, need to be fewer than the "
                f"{self.epochs} epochs, of which they are the first",
            ),
            (self.lesion_weight >= 0, f"lesion weight is {self.lesion_weight}, needs at least 0"),
        )
        for holds, message in checks:
            if not holds:
                raise UserError(message)

    def preprocessing(self) -> Preprocessing:
        """How films become inputs."""
        return Preprocessing(
            self.size,
            self.size,
            crop_breast=self.crop_breast,
            face_left=self.face_left,
            average_flips=self.average_flips,
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
