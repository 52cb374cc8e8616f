"""From a film of any size to the breast alone at native resolution, in the breast's own greys.

:class:`hmc_fast.data.Preprocessing` fits every film into one square; this keeps the film's pixels.
Every image has the size of its breast, or all have one size with black at the right and at the
bottom. Lesion circles go to the image's pixels and back.
"""

from dataclasses import asdict, dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate, pad

from hmc_fast.data.breast import breast_box, breast_mask, lies_right
from hmc_fast.data.preprocessing import IMAGENET_MEAN, IMAGENET_STD, SIZE_MULTIPLE
from hmc_fast.errors import UserError

DARKEST, BRIGHTEST = 1.0, 99.5
"""Percentiles of the breast's pixels that become 0 and 1."""


@dataclass(frozen=True)
class NativeFrame:
    """The part of a film ``[film_rows, film_columns]`` that the image shows, and how large.

    Rows ``top`` to ``bottom`` and columns ``left`` to ``right`` of the film, mirrored where the
    chest wall is at the right, times ``scale``, stand at the upper left of ``[height, width]``
    pixels. Positions are pixel centres, counted from the upper left. ``breast_found`` is False
    where no breast was told from the ground, so that the whole film is shown as it stands.
    """

    film_rows: int
    film_columns: int
    top: int
    bottom: int
    left: int
    right: int
    mirrored: bool
    scale: float
    height: int
    width: int
    breast_found: bool

    def to_image(self, row: float, column: float) -> tuple[float, float]:
        """Row and column of the image for a place on the film."""
        across = self.right - 1 - column if self.mirrored else column - self.left
        return (row - self.top + 0.5) * self.scale - 0.5, (across + 0.5) * self.scale - 0.5

    def to_film(self, row: float, column: float) -> tuple[float, float]:
        """Row and column of the film for a place in the image; undoes :meth:`to_image`."""
        across = (column + 0.5) / self.scale - 0.5
        return (
            (row + 0.5) / self.scale - 0.5 + self.top,
            self.right - 1 - across if self.mirrored else across + self.left,
        )

    def circle(self, x: float, y: float, radius: float) -> tuple[float, float, float]:
        """MIAS's circle (y counted upwards from the lowest row) as row, column, radius here."""
        row, column = self.to_image(self.film_rows - 1 - y, x)
        return row, column, radius * self.scale

    @property
    def content(self) -> tuple[int, int]:
        """Rows and columns of the image that show the film; the rest is black."""
        return (
            max(1, round((self.bottom - self.top) * self.scale)),
            max(1, round((self.right - self.left) * self.scale)),
        )

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


class NativeImage(NamedTuple):
    """An image ``[1, height, width]`` in 0…1, fp32, 0 outside the breast, and its frame."""

    image: Tensor
    frame: NativeFrame


@dataclass(frozen=True)
class NativePreprocessing:
    """Crop to the breast, face left, breast-relative greys, black outside, normalise.

    Args:
        film_side: films are scaled so that their longer side has as many pixels (MIAS: 1024).
        height: rows of every image, a multiple of 32; None for each breast's own height, rounded
            up to a multiple of 32.
        width: columns, as ``height``. A breast that does not fit is scaled down.
        mean: subtracted per channel, for pixels in 0…1.
        std: divided by per channel.

    Raises:
        UserError: a side is no positive multiple of 32, or only one of height and width is given.
    """

    film_side: int = 1024
    height: int | None = None
    width: int | None = None
    mean: tuple[float, float, float] = IMAGENET_MEAN
    std: tuple[float, float, float] = IMAGENET_STD

    def __post_init__(self) -> None:
        if (self.height is None) != (self.width is None):
            raise UserError("native resolution: give both height and width, or neither")
        for side in (self.film_side, self.height, self.width):
            if side is not None and (side < SIZE_MULTIPLE or side % SIZE_MULTIPLE):
                raise UserError(
                    f"native resolution: a side of {side} pixels; sides must be multiples of "
                    f"{SIZE_MULTIPLE}, for example 544 or 960"
                )

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "NativePreprocessing":
        """Raises ``TypeError`` or ``KeyError`` for values of another kind."""
        return cls(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std)}

    def __call__(self, film: NDArray[np.float32]) -> NativeImage:
        """The breast of a film ``[H, W]`` in 0…1.

        A film on which no breast can be told from the ground is shown whole, and its frame says so.

        Raises :class:`UserError` for a film of one grey, which shows nothing.
        """
        if film.min() == film.max():
            raise UserError("all pixels of the film are the same, it shows no breast; leave it out")
        mask = breast_mask(film)
        frame = self._frame(film, mask)
        rows, columns = slice(frame.top, frame.bottom), slice(frame.left, frame.right)
        breast = film[rows, columns][mask[rows, columns]]
        darkest, brightest = np.percentile(breast, [DARKEST, BRIGHTEST]).tolist()
        if brightest <= darkest:  # almost all of one grey: the few other pixels are the content
            darkest, brightest = float(film.min()), float(film.max())
        greys = np.clip((film[rows, columns] - darkest) / (brightest - darkest), 0, 1)
        image = _place(greys * mask[rows, columns], frame)
        return NativeImage(image, frame)

    def normalise(self, image: Tensor) -> Tensor:
        """``[1, height, width]`` in 0…1 to the model's ``[3, height, width]``."""
        mean = torch.tensor(self.mean).view(3, 1, 1)
        std = torch.tensor(self.std).view(3, 1, 1)
        return (image - mean) / std

    def _frame(self, film: NDArray[np.float32], mask: NDArray[np.bool_]) -> NativeFrame:
        rows, columns = film.shape
        top, bottom, left, right = breast_box(mask)
        scale = self.film_side / max(rows, columns)
        if self.height is not None and self.width is not None:
            scale = min(scale, self.height / (bottom - top), self.width / (right - left))
        located = not bool(mask.all())
        frame = NativeFrame(
            film_rows=rows,
            film_columns=columns,
            top=top,
            bottom=bottom,
            left=left,
            right=right,
            mirrored=located and lies_right(mask),
            scale=scale,
            height=self.height or 0,
            width=self.width or 0,
            breast_found=located,
        )
        if self.height is not None:
            return frame
        height, width = (-(-side // SIZE_MULTIPLE) * SIZE_MULTIPLE for side in frame.content)
        return NativeFrame(**{**asdict(frame), "height": height, "width": width})


def _place(greys: NDArray[np.floating], frame: NativeFrame) -> Tensor:
    """Mirror, scale and pad what the frame shows of the film."""
    turned = greys[:, ::-1] if frame.mirrored else greys
    image = torch.from_numpy(np.ascontiguousarray(turned, np.float32))[None, None]
    if image.shape[-2:] != frame.content:
        image = interpolate(image, frame.content, mode="bilinear", antialias=True).clamp(0, 1)
    rows, columns = frame.content
    return pad(image, (0, frame.width - columns, 0, frame.height - rows))[0]
