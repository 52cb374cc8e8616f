"""Damaged and unsuitable pictures: one clear line each, through the command line as well."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hmc_fast import UserError
from hmc_fast.data import read_pixels

GOOD = b"P5\n# a comment\n8 4\n255\n" + bytes(range(32))


def pgm_16_bit(path: Path) -> None:
    path.write_bytes(b"P5\n8 4\n65535\n" + bytes(64))


def rgb_png(path: Path) -> None:
    Image.fromarray(np.zeros((8, 8, 3), np.uint8)).save(path, format="PNG")


BAD: dict[str, tuple[bytes | Callable[[Path], None], str]] = {
    "empty.pgm": (b"", "the file is empty"),
    "truncated.pgm": (GOOD[:-5], "is damaged"),
    "header_only.pgm": (b"P5\n8 4\n", "is damaged|header is damaged"),
    "absurd.pgm": (b"P5\n999999999 999999999\n255\n" + bytes(9), "claims too many pixels"),
    "wide.pgm": (b"P5\n20000 1\n255\n" + bytes(20000), "claims too many pixels"),
    "sixteen.pgm": (pgm_16_bit, "not 8-bit greyscale"),
    "negative.pgm": (b"P5\n-8 4\n255\n" + bytes(32), "damaged"),
    "text.pgm": (b"not a picture", "is no PGM, PNG or DICOM file"),
    "colour.png": (rgb_png, "mode RGB, not 8-bit greyscale"),
    "truncated.png": (b"\x89PNG\r\n\x1a\n" + bytes(20), "damaged"),
    "empty.dcm": (b"", "the file is empty"),
    "text.dcm": (b"not DICOM at all" * 20, "not a DICOM file"),
}


def test_a_good_pgm(tmp_path: Path) -> None:
    (tmp_path / "a.pgm").write_bytes(GOOD)
    film = read_pixels(tmp_path / "a.pgm")
    assert film.dtype == np.float32
    np.testing.assert_array_equal(
        film, np.arange(32, dtype=np.float32).reshape(4, 8) / np.float32(255)
    )


@pytest.mark.parametrize("name", BAD)
def test_bad_pictures(tmp_path: Path, name: str) -> None:
    content, message = BAD[name]
    path = tmp_path / name
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        content(path)
    with pytest.raises(UserError, match=message) as caught:
        read_pixels(path)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such file"):
        read_pixels(tmp_path / "none.pgm")
