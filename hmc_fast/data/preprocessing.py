"""From a film of any size to the model's input; stored with every checkpoint."""

from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate, pad

from hmc_fast.errors import UserError

SIZE_MULTIPLE = 32
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Preprocessing:
    """Pad to a square with black, resize with anti-aliasing, repeat to RGB, normalise.

    Args:
        height: rows of the result, a multiple of 32.
        width: columns of the result, a multiple of 32.
        mean: subtracted per channel, for pixels in 0…1.
        std: divided by per channel.

    Raises:
        UserError: a side is not a positive multiple of 32.
    """

    height: int
    width: int
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        for side in (self.height, self.width):
            if side < SIZE_MULTIPLE or side % SIZE_MULTIPLE:
                raise UserError(
                    f"image size {self.height}x{self.width}: both sides must be multiples of "
                    f"{SIZE_MULTIPLE}, for example 224, 512 or 1024"
                )

    @classmethod
    def square(cls, size: int) -> "Preprocessing":
        return cls(size, size)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Preprocessing":
        """Raises ``TypeError`` or ``KeyError`` for values of another kind."""
        return cls(values["height"], values["width"], tuple(values["mean"]), tuple(values["std"]))

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std)}

    def resize(self, film: NDArray[np.float32]) -> Tensor:
        """Film ``[H, W]`` in 0…1 to ``[1, height, width]`` in 0…1, fp32."""
        image = torch.from_numpy(np.ascontiguousarray(film))[None, None]
        rows, columns = film.shape
        side = max(rows, columns)
        top, left = (side - rows) // 2, (side - columns) // 2
        image = pad(image, (left, side - columns - left, top, side - rows - top))
        if image.shape[-2:] != (self.height, self.width):
            image = interpolate(
                image, (self.height, self.width), mode="bilinear", antialias=True
            ).clamp(0, 1)
        return image[0]

    def normalise(self, image: Tensor) -> Tensor:
        """``[1, height, width]`` in 0…1 to the model's ``[3, height, width]``."""
        mean = torch.tensor(self.mean).view(3, 1, 1)
        std = torch.tensor(self.std).view(3, 1, 1)
        return (image - mean) / std

    def __call__(self, film: NDArray[np.float32]) -> Tensor:
        """Film ``[H, W]`` in 0…1 to the model's ``[3, height, width]``."""
        return self.normalise(self.resize(film))
