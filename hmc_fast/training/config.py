"""Settings of a training run; stored with every result."""

from dataclasses import asdict, dataclass
from typing import Any

from hmc_fast.data import TASKS, Preprocessing
from hmc_fast.errors import UserError
from hmc_fast.evaluation import PRECISIONS


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
        weights: None, ``"imagenet"`` or a safetensors file with the trunk.
        precision: ``fp32``, ``bf16`` or ``fp16`` (mixed).
        augment: random flips, rotations, shifts and scales on training films.
        balance: weight the loss by inverse class frequency.
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
    seed: int = 0

    def __post_init__(self) -> None:
        Preprocessing.square(self.size)
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
        )
        for holds, message in checks:
            if not holds:
                raise UserError(message)

    def to_json(self) -> dict[str, Any]:
        return asdict(self)
