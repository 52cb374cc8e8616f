"""One film from a file: PGM, PNG or DICOM."""

import hashlib
import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError

from hmc_fast.data.dicom import dicom_size, is_dicom, read_dicom
from hmc_fast.data.limits import MAX_SIDE
from hmc_fast.errors import UserError


def read_pixels(path: Path, *, allow_raw: bool = False) -> NDArray[np.float32]:
    """Greyscale pixels ``[H, W]`` in 0…1, bright tissue on a dark ground.

    DICOM files go through the whole greyscale chain, see :mod:`hmc_fast.data.greyscale`; those for
    processing are refused unless ``allow_raw``.

    Raises :class:`UserError` where the file is missing, damaged, too large or not a film.
    """
    try:
        if not path.is_file():
            raise UserError(f"{path}: no such file")
        if path.stat().st_size == 0:
            raise UserError(f"{path}: the file is empty; copy it again")
        dicom = is_dicom(path)
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    return read_dicom(path, allow_raw=allow_raw) if dicom else _read_picture(path)


def film_size(path: Path) -> tuple[int, int]:
    """Rows and columns of a film, by its header alone.

    Raises :class:`UserError` where the file is missing or its header damaged.
    """
    try:
        if is_dicom(path):
            return dicom_size(path)
        with Image.open(path, formats=("PPM", "PNG")) as image:
            return image.height, image.width
    except UnidentifiedImageError:
        raise UserError(f"{path}: is no PGM, PNG or DICOM file, or its header is damaged") from None
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror or error})") from None


def pixel_digest(pixels: NDArray[np.float32]) -> str:
    """SHA-256 of decoded pixels, the same for PGM and PNG of one film."""
    return hashlib.sha256(pixels.tobytes()).hexdigest()


def _read_picture(path: Path) -> NDArray[np.float32]:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            image = Image.open(path, formats=("PPM", "PNG"))
        with image:
            width, height = image.size
            if max(width, height) > MAX_SIDE:
                raise Image.DecompressionBombError
            if image.mode != "L":
                raise UserError(
                    f"{path}: has pixels of mode {image.mode}, not 8-bit greyscale; MIAS films are "
                    "8-bit, give deeper ones as DICOM"
                )
            return np.asarray(image, dtype=np.float32) / np.float32(255)
    except Image.DecompressionBombError:
        raise UserError(
            f"{path}: the header claims too many pixels (at most {MAX_SIDE} a side); "
            "the file is damaged"
        ) from None
    except UnidentifiedImageError:
        raise UserError(f"{path}: is no PGM, PNG or DICOM file, or its header is damaged") from None
    except (OSError, ValueError, SyntaxError) as error:
        raise UserError(f"{path}: is damaged ({error}); copy it again") from None
