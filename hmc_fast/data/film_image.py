"""The network's image of a film file."""

from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from hmc_fast.data.frame import Frame
from hmc_fast.data.pixels import read_pixels
from hmc_fast.data.preprocessing import Preprocessing
from hmc_fast.errors import UserError


class FilmImage(NamedTuple):
    """``pixels [H, W]`` of the file, ``image [1, height, width]`` as the network sees them.

    Both are fp32 in 0…1; ``frame`` says where the film lies in its image.
    """

    pixels: NDArray[np.float32]
    image: Tensor
    frame: Frame


def film_image(path: Path, preprocessing: Preprocessing, *, allow_raw: bool = False) -> FilmImage:
    """Read and place a film; it is not normalised yet, see :meth:`Preprocessing.normalise`.

    DICOM images for processing are refused unless ``allow_raw``.

    Raises :class:`UserError`, which names the path, for a file that cannot be read or a film that
    cannot be placed.
    """
    pixels = read_pixels(path, allow_raw=allow_raw)
    try:
        image, frame = preprocessing.place(pixels)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    return FilmImage(pixels, image, frame)
