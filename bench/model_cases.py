"""Cases of ``bench model``: a model, an image size, a batch, and inference or a training step."""

import re
from dataclasses import dataclass
from typing import Literal

from hmc_fast.errors import UserError
from hmc_fast.models import MODEL_NAMES
from hmc_fast.models.hmc_net import STRIDE

What = Literal["inference", "training"]
WHATS: tuple[What, ...] = ("inference", "training")
_NAME = re.compile(r"([a-z0-9_]+)@(\d+)x(\d+)(?:/(inference|training))?")


@dataclass(frozen=True)
class ModelCase:
    """``name`` is ``model@size x batch``, as in the records."""

    model: str
    size: int
    batch: int
    what: What

    @property
    def name(self) -> str:
        return f"{self.model}@{self.size}x{self.batch}"


def parse_model_case(text: str) -> ModelCase:
    """``hmc_net@512x16/training``; without the last part it is inference.

    Raises :class:`UserError` for a name that does not fit, an unknown model or a wrong size.
    """
    found = _NAME.fullmatch(text)
    if found is None:
        raise UserError(
            f"unknown case {text!r}; cases look like hmc_net@224x1 or resnet50@512x16/training "
            "(model @ image size x batch / what)"
        )
    model, size, batch = found[1], int(found[2]), int(found[3])
    if model not in MODEL_NAMES:
        raise UserError(f"case {text!r}: unknown model; choose one of {', '.join(MODEL_NAMES)}")
    if size < STRIDE or size % STRIDE:
        raise UserError(f"case {text!r}: the size must be a multiple of {STRIDE}")
    if batch < 1:
        raise UserError(f"case {text!r}: the batch must be at least 1")
    return ModelCase(model, size, batch, "training" if found[4] == "training" else "inference")


def _both(*cases: str) -> tuple[str, ...]:
    return tuple(f"{model}@{case}" for case in cases for model in ("hmc_net", "resnet50"))


MODEL_PRESETS: dict[str, tuple[str, ...]] = {
    "cpu": (
        *_both("96x1", "160x1", "224x1", "96x4"),
        "hmc_net@96x2/training",
        "resnet50@96x2/training",
    ),
    "gpu": _both(
        "1024x8",
        "224x1",
        "512x16/training",
        "224x64",
        "1024x1",
        "224x8",
        "512x8",
    ),
}
"""Most important first: where a time budget runs out, the last ones are left."""
