"""Damaged and unsuitable pictures: one clear line each, through the command line as well."""

import struct
import zlib
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hmc_fast import UserError
from hmc_fast.data import read_pixels
from hmc_fast.data.pixels import film_header

GOOD = b"P5\n# a comment\n8 4\n255\n" + bytes(range(32))


DEEP = np.random.default_rng(1).integers(0, 65536, (6, 9), np.uint16)
GREY = (DEEP >> 8).astype(np.uint8)


def colour_png(path: Path) -> None:
    colours = np.zeros((8, 8, 3), np.uint8)
    colours[3, 3] = 7, 7, 8
    Image.fromarray(colours).save(path, format="PNG")


def transparent_png(path: Path) -> None:
    Image.fromarray(np.dstack([GREY, GREY // 2])).save(path, format="PNG")


def half_png(path: Path) -> None:
    """A PNG whose compressed data end, in good order, before the rows do."""
    png_of(path, (b"\0" + bytes([9]) * 8) * 4)


def png_of(
    path: Path, data: bytes, *, interlace: int = 0, colour: int = 0, palette: bytes = b""
) -> None:
    """An 8-bit PNG of 8x8 pixels that holds ``data``."""
    chunks = [
        (b"IHDR", struct.pack(">2I5B", 8, 8, 8, colour, 0, 0, interlace)),
        *([(b"PLTE", palette)] if palette else []),
        (b"IDAT", zlib.compress(data)),
        (b"IEND", b""),
    ]
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + b"".join(
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
            for name, data in chunks
        )
    )


def two_page_tiff(path: Path) -> None:
    page = Image.fromarray(GREY)
    page.save(path, save_all=True, append_images=[page])


def inverted_tiff(path: Path) -> None:
    Image.fromarray(DEEP).save(path, tiffinfo={262: 0})


def float_tiff(path: Path) -> None:
    Image.fromarray(DEEP.astype(np.float32)).save(path)


def jpeg_tiff(path: Path) -> None:
    Image.fromarray(GREY).save(path, compression="jpeg")


def turned_jpeg(path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6
    Image.fromarray(GREY).save(path, exif=exif)


def deep_colour_png(path: Path) -> None:
    half_png(path)
    content = bytearray(path.read_bytes())
    content[24:26] = 16, 2
    content[29:33] = struct.pack(">I", zlib.crc32(content[12:29]))
    path.write_bytes(content)


def damaged_jpeg(path: Path) -> None:
    picture = np.random.default_rng(1).integers(0, 256, (64, 64), np.uint8)
    Image.fromarray(picture).save(path, quality=90)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2] + content[len(content) // 2 + 9 :])


def no_palette_png(path: Path) -> None:
    png_of(path, (b"\0" + bytes(range(8))) * 8, colour=3)


def small_palette_png(path: Path) -> None:
    png_of(path, b"\0" + bytes([0, 1, 2, 3] * 2) + bytes(63), colour=3, palette=bytes(9))


def damaged_colour_jpeg(path: Path) -> None:
    """All grey, and cut before its last marker: what is missing would be drawn."""
    noise = np.random.default_rng(1).integers(0, 256, (64, 64, 1), np.uint8)
    Image.fromarray(noise.repeat(3, axis=2)).save(path)
    path.write_bytes(path.read_bytes()[:-400] + b"\xff\xd9")


BAD: dict[str, tuple[bytes | Callable[[Path], None], str]] = {
    "empty.pgm": (b"", "the file is empty"),
    "truncated.pgm": (GOOD[:-5], "is damaged"),
    "header_only.pgm": (b"P5\n8 4\n", "is damaged|header is damaged"),
    "absurd.pgm": (b"P5\n999999999 999999999\n255\n" + bytes(9), "claims too many pixels"),
    "wide.pgm": (b"P5\n20000 1\n255\n" + bytes(20000), "claims too many pixels"),
    "many.pgm": (b"P5\n12000 12000\n255\n" + bytes(9), "claims too many pixels, 12000x12000"),
    "endless.pgm": (b"P5\n#" + b"x" * 2**17 + b"\n8 4\n255\n" + bytes(32), "header does not end"),
    "above.pgm": (b"P5\n8 4\n9\n" + bytes(range(32)), "a sample is above 9"),
    "deep_above.pgm": (b"P5\n8 4\n300\n" + bytes(range(64)), "a sample is above 300"),
    "crlf.pgm": (b"P5\r\n8 4\r\n255\r\n" + bytes(range(32)), "1 bytes more than its pixels"),
    "two.pgm": (GOOD * 2, "more than its pixels"),
    "blank.pgm": (b"P5\n8 4\n255\n" + b"9" * 32, "shows no picture"),
    "no_palette.png": (no_palette_png, "none of the palette's 0 colours"),
    "small_palette.png": (small_palette_png, "none of the palette's 3 colours"),
    "damaged_colour.jpg": (damaged_colour_jpeg, "is damaged .*Corrupt JPEG data"),
    "none.pgm": (b"P5\n0 4\n255\n", "damaged"),
    "negative.pgm": (b"P5\n-8 4\n255\n" + bytes(32), "damaged"),
    "text.pgm": (b"not a picture", "is no DICOM, PGM, PNG, TIFF or JPEG file"),
    "colour.png": (colour_png, "is in colour"),
    "transparent.png": (transparent_png, "has transparent pixels"),
    "deep_colour.png": (deep_colour_png, "mode RGB; needs 8 or 16 bits of grey"),
    "half.png": (half_png, "is damaged .36 of 72 bytes of pixels are there"),
    "bilevel.png": (lambda path: Image.new("1", (8, 8)).save(path), "mode 1; needs 8 or 16 bits"),
    "pages.tiff": (two_page_tiff, "holds several pictures"),
    "inverted.tiff": (inverted_tiff, "16-bit TIFF whose white is 0"),
    "float.tiff": (float_tiff, "has .* bits a sample; needs 8 or 16 bits of grey"),
    "jpeg.tiff": (jpeg_tiff, "TIFF of compression jpeg"),
    "turned.jpg": (turned_jpeg, "is to be turned when shown"),
    "damaged.jpg": (damaged_jpeg, "is damaged .*Corrupt JPEG data"),
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


@pytest.mark.parametrize("name", ["a.png", "a.tiff", "b.tif", "a.pgm"])
def test_16_bits_are_kept(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    if name == "a.pgm":
        path.write_bytes(b"P5\n9 6\n65535\n" + DEEP.byteswap().tobytes())
    else:
        Image.fromarray(DEEP).save(path, **{"compression": "tiff_lzw"} if name[0] == "b" else {})
    np.testing.assert_array_equal(read_pixels(path), DEEP.astype(np.float32) / np.float32(65535))
    assert film_header(path)[:3] == (6, 9, 16)


@pytest.mark.parametrize("name", ["a.png", "a.tiff", "p.png", "a.pgm"])
def test_colours_that_are_all_grey(tmp_path: Path, name: str) -> None:
    picture = Image.fromarray(np.dstack([GREY] * 3))
    if name == "p.png":
        picture = picture.quantize(256)
    if name == "a.pgm":
        picture = picture.convert("L")
    picture.save(tmp_path / name)
    np.testing.assert_array_equal(
        read_pixels(tmp_path / name), GREY.astype(np.float32) / np.float32(255)
    )
    assert film_header(tmp_path / name).bits == 8


@pytest.mark.parametrize("channels", [1, 3])
def test_grey_jpegs(tmp_path: Path, channels: int) -> None:
    grey = np.add.outer(np.arange(40), np.arange(30)).astype(np.uint8)
    picture = grey if channels == 1 else np.dstack([grey] * 3)
    Image.fromarray(picture).save(tmp_path / "a.jpg", quality=95)
    np.testing.assert_allclose(read_pixels(tmp_path / "a.jpg"), grey / 255, atol=3 / 255)
    assert film_header(tmp_path / "a.jpg") == (40, 30, 8, "jpeg")


def test_pngs_that_end_in_black_are_whole(tmp_path: Path) -> None:
    film = np.full((8, 8), 9, np.uint8)
    film[4:] = 0
    Image.fromarray(film).save(tmp_path / "b.png")
    assert read_pixels(tmp_path / "b.png").shape == (8, 8)


def test_interlaced_pngs_hold_all_passes(tmp_path: Path) -> None:
    png_of(tmp_path / "a.png", bytes(78) + b"\x09", interlace=1)
    assert read_pixels(tmp_path / "a.png").shape == (8, 8)
    png_of(tmp_path / "a.png", bytes(43), interlace=1)
    with pytest.raises(UserError, match="43 of 79 bytes"):
        read_pixels(tmp_path / "a.png")


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
