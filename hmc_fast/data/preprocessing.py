"""From a film of any size to the model's input; stored with every checkpoint."""

from dataclasses import asdict, dataclass, fields, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate, pad

from hmc_fast.data.breast import breast_box, breast_mask, lies_right
from hmc_fast.data.contrast import equalise
from hmc_fast.data.frame import Box, Frame
from hmc_fast.errors import UserError
from hmc_fast.schema import STRICT

SIZE_MULTIPLE = 32
IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
DARKEST, BRIGHTEST = 1.0, 99.5
"""Percentiles of the breast's pixels that become 0 and 1 at native resolution."""


@dataclass(frozen=True)
class Preprocessing:
    """Frame the breast, fit it into ``height × width`` with black, repeat to RGB, normalise.

    Usually the film is centred and as large as fits. With ``native`` the film's longer side is
    ``height`` pixels, so that all films keep one scale: the breast's box alone is shown, facing
    left, at the upper left (smaller only where it does not fit), in the breast's own greys and
    black outside the breast.

    Args:
        height: rows of the result, a multiple of 32.
        width: columns of the result, a multiple of 32.
        mean: subtracted per channel, for pixels in 0…1.
        std: divided by per channel.
        crop_breast: keep the breast's bounding box alone.
        face_left: mirror films whose chest wall is at the right.
        average_flips: a prediction is the mean of the logits of the film and its mirror image; see
            :func:`hmc_fast.evaluation.film_logits`.
        native: see above; it implies ``crop_breast`` and ``face_left``.
        clahe: equalise the local contrast, see :func:`hmc_fast.data.contrast.equalise`.

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
    native: bool = False
    clahe: bool = False

    __pydantic_config__ = STRICT

    def __post_init__(self) -> None:
        for side in (self.height, self.width):
            if side < SIZE_MULTIPLE or side % SIZE_MULTIPLE:
                raise UserError(
                    f"image size {self.height}x{self.width}: both sides must be multiples of "
                    f"{SIZE_MULTIPLE}, for example 224, 512 or 1024x640"
                )
        if self.all_face_left and self.average_flips:
            raise UserError(
                "a model that sees all films facing left cannot average over flips; leave out "
                "--average-flips, or --face-left and --native"
            )

    @classmethod
    def square(cls, size: int) -> "Preprocessing":
        return cls(size, size)

    def at_height(self, height: int) -> "Preprocessing":
        """The same at another height; the width keeps the proportions, to a multiple of 32."""
        width = -(-self.width * height // (self.height * SIZE_MULTIPLE)) * SIZE_MULTIPLE
        return replace(self, height=height, width=width)

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "Preprocessing":
        """Raises ``TypeError`` or ``KeyError`` for values of another kind."""
        unknown = set(values) - {field.name for field in fields(cls)}
        if unknown:
            raise KeyError(sorted(unknown)[0])
        return cls(**{**values, "mean": tuple(values["mean"]), "std": tuple(values["std"])})

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "mean": list(self.mean), "std": list(self.std)}

    @property
    def all_face_left(self) -> bool:
        """Whether every image faces left, so that a flip would make another kind of image."""
        return self.face_left or self.native

    def __call__(self, film: NDArray[np.float32]) -> Tensor:
        """Film ``[H, W]`` in 0…1 to the model's ``[3, height, width]``; as :meth:`place`."""
        image, _ = self.place(film)
        return self.normalise(image)

    def place(self, film: NDArray[np.float32]) -> tuple[Tensor, Frame]:
        """Film ``[H, W]`` in 0…1 to ``[1, height, width]`` in 0…1, fp32, and where it lies there.

        Raises :class:`UserError` at native resolution for a film of one grey, which shows nothing.
        """
        mask = breast_mask(film) if self._needs_breast else None
        frame = self._frame_of(film, mask)
        if not self.native:
            return self.resize(equalise(film) if self.clahe else film, frame), frame
        assert mask is not None
        greys = _breast_greys(film, mask, frame.box)
        return self.resize(equalise(greys) * mask if self.clahe else greys, frame), frame

    def frame(self, film: NDArray[np.float32]) -> Frame:
        """Where ``film [H, W]`` lies in the image."""
        return self._frame_of(film, breast_mask(film) if self._needs_breast else None)

    def frame_around(self, box: Box, shape: tuple[int, int], *, breast_found: bool = True) -> Frame:
        """Where a box of a film of ``shape [H, W]`` lies in the image."""
        rows, columns = box.bottom - box.top, box.right - box.left
        scale = min(self.height / rows, self.width / columns)
        above = before = 0.0
        if self.native:
            scale = min(scale, self.height / max(shape))
        else:
            padded_rows, padded_columns = self._padded(rows, columns)
            above = (padded_rows - rows) // 2 * scale
            before = (padded_columns - columns) // 2 * scale
        return Frame(*shape, box, scale, above, before, self.height, self.width, breast_found)

    def resize(self, plane: NDArray[np.floating], frame: Frame) -> Tensor:
        """A plane ``[H, W]`` of a film, such as its lesions' mask: ``[1, height, width]``, fp32.

        Its values, in 0…1, stay as they are.
        """
        box = frame.box
        part = plane[box.top : box.bottom, box.left : box.right]
        # A copy: of one column, NumPy calls a mirrored view contiguous, and PyTorch refuses it.
        part = part[:, ::-1].copy() if box.mirrored else part
        image = torch.from_numpy(np.ascontiguousarray(part, np.float32))[None, None]
        rows, columns = part.shape
        if self.native:
            size = (max(1, round(rows * frame.scale)), max(1, round(columns * frame.scale)))
            image = _scaled(image, size)
            return pad(image, (0, self.width - size[1], 0, self.height - size[0]))[0]
        padded_rows, padded_columns = self._padded(rows, columns)
        top, left = (padded_rows - rows) // 2, (padded_columns - columns) // 2
        image = pad(image, (left, padded_columns - columns - left, top, padded_rows - rows - top))
        return _scaled(image, (self.height, self.width))[0]

    def normalise(self, image: Tensor) -> Tensor:
        """``[1, height, width]`` in 0…1 to the model's ``[3, height, width]``."""
        mean = torch.tensor(self.mean).view(3, 1, 1)
        std = torch.tensor(self.std).view(3, 1, 1)
        return (image - mean) / std

    @property
    def _needs_breast(self) -> bool:
        return self.crop_breast or self.face_left or self.native

    def _frame_of(self, film: NDArray[np.float32], mask: NDArray[np.bool_] | None) -> Frame:
        rows, columns = film.shape
        box = Box(0, rows, 0, columns, mirrored=False)
        found = True
        if mask is not None:
            found = not bool(mask.all())
            if self.crop_breast or self.native:
                box = Box(*breast_box(mask), mirrored=False)
            mirrored = self.all_face_left and lies_right(mask) and (found or not self.native)
            box = box._replace(mirrored=mirrored)
        return self.frame_around(box, (rows, columns), breast_found=found)

    def _padded(self, rows: int, columns: int) -> tuple[int, int]:
        """The smallest area of the image's proportions that holds ``rows × columns``."""
        scale = min(self.height / rows, self.width / columns)
        return max(rows, round(self.height / scale)), max(columns, round(self.width / scale))


def native_width(height: int) -> int:
    """Columns that hold a breast on a film of ``height`` rows: 5/8 of them, or a few more."""
    return -(-height * 5 // (8 * SIZE_MULTIPLE)) * SIZE_MULTIPLE


def _breast_greys(
    film: NDArray[np.float32], mask: NDArray[np.bool_], box: Box
) -> NDArray[np.floating]:
    """The film with the breast's percentiles as 0 and 1, and 0 outside the breast."""
    if film.min() == film.max():
        raise UserError("all pixels of the film are the same, it shows no breast; leave it out")
    rows, columns = slice(box.top, box.bottom), slice(box.left, box.right)
    breast = film[rows, columns][mask[rows, columns]]
    darkest, brightest = np.percentile(breast, [DARKEST, BRIGHTEST]).tolist()
    if brightest <= darkest:  # almost all of one grey: the few other pixels are the content
        darkest, brightest = float(film.min()), float(film.max())
    return np.asarray(np.clip((film - darkest) / (brightest - darkest), 0, 1) * mask)


def _scaled(image: Tensor, size: tuple[int, int]) -> Tensor:
    if image.shape[-2:] == size:
        return image
    return interpolate(image, size, mode="bilinear", antialias=True).clamp(0, 1)
