"""One film from a file: DICOM, PGM, PNG, TIFF or JPEG.

Pictures are read where their greys are beyond doubt: 8 or 16 bits of grey, or colours that are all
grey. Black is 0 and the largest value of the format is 1.
"""

import hashlib
import warnings
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, UnidentifiedImageError
from pydicom.uid import JPEGBaseline8Bit

from hmc_fast.data.codestream import read_codestream
from hmc_fast.data.decoder import DECODER
from hmc_fast.data.dicom import dicom_header, is_dicom, read_dicom
from hmc_fast.data.limits import check_file_size, check_size, max_pixels, too_many_pixels
from hmc_fast.data.pgm import check_header, check_samples
from hmc_fast.data.png import check_rows, png_depth
from hmc_fast.errors import UserError

FORMATS = ("PPM", "PNG", "TIFF", "JPEG")
TIFF_COMPRESSIONS = ("raw", "tiff_lzw", "tiff_adobe_deflate", "tiff_deflate", "packbits")
GREY_MODES = {"L": 8, "I;16": 16, "I;16L": 16, "I;16B": 16}
"""Pillow's modes of grey pixels, and their bits."""
COLOUR_MODES = ("RGB", "RGBA", "LA", "P")
ORIENTATION = 0x0112
UPRIGHT = 1
WHITE_IS_ZERO = 0
_BITS_PER_SAMPLE, _PHOTOMETRIC = 258, 262


class FilmHeader(NamedTuple):
    """Size in pixels, bits a pixel, and format: dicom, ppm, png, tiff or jpeg."""

    rows: int
    columns: int
    bits: int
    format: str


def read_pixels(path: Path, *, allow_raw: bool = False) -> NDArray[np.float32]:
    """Greyscale pixels ``[H, W]`` in 0…1, bright tissue on a dark ground.

    DICOM files go through the whole greyscale chain, see :mod:`hmc_fast.data.greyscale`; those for
    processing are refused unless ``allow_raw``.

    Raises :class:`UserError` where the file is missing, damaged, too large or not a film.
    """
    if _is_dicom(path):
        film = read_dicom(path, allow_raw=allow_raw)
    else:
        with _damage_of(path), _opened(path) as image:
            header = _header_of(path, image)
            pixels = _pixels_of(path, image, header)
            film = pixels.astype(np.float32) / np.float32(2**header.bits - 1)
    if film.min() == film.max():
        raise UserError(f"{path}: shows no picture, every pixel has the same grey")
    return film


def film_header(path: Path) -> FilmHeader:
    """Size, bits and format of a film, by its header alone.

    Raises :class:`UserError` where the file is missing, or its header damaged, that of a film too
    large, or of no film.
    """
    if _is_dicom(path):
        return FilmHeader(*dicom_header(path), "dicom")
    with _damage_of(path), _opened(path) as image:
        return _header_of(path, image)


def pixel_digest(pixels: NDArray[np.float32]) -> str:
    """SHA-256 of decoded pixels, the same for PGM and PNG of one film."""
    return hashlib.sha256(pixels.tobytes()).hexdigest()


def picture_of(path: Path) -> str | None:
    """:func:`pixel_digest` of a file, raw images included; None where it cannot be read."""
    try:
        return pixel_digest(read_pixels(path, allow_raw=True))
    except UserError:
        return None


def same_picture(pictures: Collection[str | None]) -> bool:
    """Whether files of one SOPInstanceUID are one film, by their :func:`picture_of`.

    A file that cannot be read may show anything.
    """
    return len(set(pictures)) == 1 and None not in pictures


def _is_dicom(path: Path) -> bool:
    try:
        if not path.is_file():
            raise UserError(f"{path}: no such file")
        if path.stat().st_size == 0:
            raise UserError(f"{path}: the file is empty; copy it again")
        return is_dicom(path)
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path}: cannot be read ({reason})") from None


@contextmanager
def _damage_of(path: Path) -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except UserError:
            raise
        except Image.DecompressionBombError:
            raise UserError(f"{path}: {too_many_pixels()}") from None
        except UnidentifiedImageError:
            raise UserError(
                f"{path}: is no DICOM, PGM, PNG, TIFF or JPEG file, or its header is damaged"
            ) from None
        except Exception as error:  # a damaged picture can break its decoder anywhere
            reason = " ".join(str(error).split())[:200] or type(error).__name__
            raise UserError(f"{path}: is damaged ({reason}); copy it again") from None


def _opened(path: Path) -> Image.Image:
    """The picture, of which only the header is read.

    Pillow has a budget of its own, for the whole process; a larger one of ours goes before it.
    """
    check_file_size(path)
    check_header(path)
    budget = Image.MAX_IMAGE_PIXELS
    if budget is not None and 2 * budget < max_pixels():  # it refuses from twice of it on
        Image.MAX_IMAGE_PIXELS = max_pixels()
    return Image.open(path, formats=FORMATS)


def _header_of(path: Path, image: Image.Image) -> FilmHeader:
    """Raises :class:`UserError` where the greys, or which picture is meant, are in doubt."""
    check_size(path, image.height, image.width)
    bits = _bits_of(path, image)
    if image.format == "TIFF" and image.info.get("compression") not in TIFF_COMPRESSIONS:
        raise UserError(
            f"{path}: is a TIFF of compression {image.info.get('compression')}, needs none, LZW, "
            "deflate or packbits"
        )
    if image.format != "PPM" and image.getexif().get(ORIENTATION, UPRIGHT) != UPRIGHT:
        raise UserError(f"{path}: is to be turned when shown (its orientation tag); turn it first")
    if "transparency" in image.info:
        raise UserError(f"{path}: has transparent pixels, whose grey is in doubt")
    try:
        image.seek(1)
    except EOFError:
        return FilmHeader(image.height, image.width, bits, str(image.format).lower())
    raise UserError(f"{path}: holds several pictures, give one a file")


def _bits_of(path: Path, image: Image.Image) -> int:
    """Bits of a grey pixel as Pillow gives it."""
    needed = "needs 8 or 16 bits of grey, or colours that are all grey"
    bits = GREY_MODES.get(image.mode, 8 if image.mode in COLOUR_MODES else 0)
    if image.format == "PPM" and image.mode == "I":
        return 16
    if image.format == "TIFF":
        tags = dict(getattr(image, "tag_v2", {}))
        if set(tags.get(_BITS_PER_SAMPLE, ())) != {bits}:
            raise UserError(f"{path}: has {tags.get(_BITS_PER_SAMPLE)} bits a sample; {needed}")
        if bits == 16 and tags.get(_PHOTOMETRIC) == WHITE_IS_ZERO:
            raise UserError(f"{path}: is a 16-bit TIFF whose white is 0; invert it first")
    elif image.format == "PNG":
        depth, channels = png_depth(path)
        if depth == 16 and channels > 1:
            bits = 0
    if not bits:
        raise UserError(f"{path}: has pixels of mode {image.mode}; {needed}")
    return bits


def _pixels_of(path: Path, image: Image.Image, header: FilmHeader) -> NDArray[np.integer]:
    if image.format == "JPEG":  # Pillow draws what is missing grey, without a word
        frame = path.read_bytes()
        decoded = DECODER.decode(frame, read_codestream(frame), str(JPEGBaseline8Bit))
        if image.mode == "L":
            return decoded
    if image.format == "PPM":
        check_samples(path)
    if image.mode == "P":
        colours = len(image.getpalette() or ()) // len("RGB")
        if np.asarray(image).max() >= colours:
            raise ValueError(f"a pixel has none of the palette's {colours} colours")
    pixels = np.asarray(image if image.mode != "P" else image.convert("RGB"))
    if pixels.ndim == 3:
        pixels = _grey(path, pixels)
    if image.format == "PNG" and (image.info.get("interlace") or not pixels[-1].any()):
        check_rows(path)
    return pixels


def _grey(path: Path, pixels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """The one channel of ``[H, W, channels]``; raises :class:`UserError` for colour and alpha."""
    channels = pixels.shape[-1]
    if channels in (2, 4):
        if (pixels[..., -1] != 255).any():
            raise UserError(f"{path}: has transparent pixels, whose grey is in doubt")
        pixels = pixels[..., :-1]
    if (pixels != pixels[..., :1]).any():
        raise UserError(f"{path}: is in colour; a film is grey")
    return pixels[..., 0]
