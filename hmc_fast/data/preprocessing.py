"""From a film of any size to the model's input; stored with every checkpoint."""

from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate, pad

from hmc_fast.data.breast import breast_box, breast_mask, lies_right
from hmc_fast.errors import UserError

SIZE_MULTIPLE = 32
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class Frame:
    """The part of a film that goes to the model: rows and columns, and whether it is mirrored."""

    top: int
    bottom: int
    left: int
    right: int
    mirrored: bool


@dataclass(frozen=True)
class Preprocessing:
    """Frame the breast, pad to a square with black, resize, repeat to RGB, normalise.

    Args:
        height: rows of the result, a multiple of 32.
        width: columns of the result, a multiple of 32.
        mean: subtracted per channel, for pixels in 0…1.
        std: divided by per channel.
        crop_breast: keep the breast's bounding box alone.
        face_left: mirror films whose chest wall is at the right.
        average_flips: a prediction is the mean of the logits of the film and its mirror image; see
            :func:`hmc_fast.evaluation.film_logits`.

    Raises:
        UserError: a side is not a positive multiple of 32, or flips are averaged over films that
            all face left.
    """

    height: int
    width: int
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD
    crop_breast: bool = False
    face_left: bool = False
    average_flips: bool = False

    def __post_init__(self) -> None:
        for side in (self.height, self.width):
            if side < SIZE_MULTIPLE or side % SIZE_MULTIPLE:
                raise UserError(
                    f"image size {self.height}x{self.width}: both sides must be multiples of "
                    f"{SIZE_MULTIPLE}, for example 224, 512 or 1024"
                )
        if self.face_left and self.average_flips:
            raise UserError(
                "a model that sees all films facing left cannot average over flips; choose one of "
                "--face-left and --average-flips"
            )

    @classmethod
    def square(cls, size: int) -> "Preprocessing":
        return cls(size, size)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Preprocessing":
        """Raises ``TypeError`` or ``KeyError`` for values of another kind."""
        unknown = set(values) - {field.name for field in fields(cls)}
        if unknown:
            raise KeyError(sorted(unknown)[0])
        return cls(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std)}

    def frame(self, pixels: NDArray[np.float32]) -> Frame:
        """The part of ``pixels [H, W]`` that goes to the model; the whole of it by default."""
        rows, columns = pixels.shape
        if not (self.crop_breast or self.face_left):
            return Frame(0, rows, 0, columns, mirrored=False)
        mask = breast_mask(pixels)
        mirrored = self.face_left and lies_right(mask)
        if not self.crop_breast:
            return Frame(0, rows, 0, columns, mirrored)
        top, bottom, left, right = breast_box(mask)
        return Frame(top, bottom, left, right, mirrored)

    def resize(self, pixels: NDArray[np.float32], frame: Frame | None = None) -> Tensor:
        """Film ``[H, W]`` in 0…1 to ``[1, height, width]`` in 0…1, fp32.

        ``frame`` is the film's own by default; a map of the same film, such as a lesion's mask,
        comes with the frame of the film.
        """
        frame = self.frame(pixels) if frame is None else frame
        pixels = pixels[frame.top : frame.bottom, frame.left : frame.right]
        pixels = pixels[:, ::-1] if frame.mirrored else pixels
        image = torch.from_numpy(np.ascontiguousarray(pixels))[None, None]
        rows, columns = pixels.shape
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

    def __call__(self, pixels: NDArray[np.float32]) -> Tensor:
        """Film ``[H, W]`` in 0…1 to the model's ``[3, height, width]``."""
        return self.normalise(self.resize(pixels))
