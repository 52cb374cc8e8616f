"""How large a film may be: one budget for every reader, checked before anything is decoded.

The budget is a variable of the environment, so that it holds in all processes that read films for
this one. It is looked up here alone.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from math import isqrt
from pathlib import Path

from hmc_fast.errors import UserError

MAX_PIXELS_VARIABLE = "HMC_FAST_MAX_PIXELS"
MAX_PIXELS = 100_000_000
"""Most pixels of a film by default: three times those of a 50 µm digital mammogram."""
MAX_SIDE = 16_384
"""Largest height or width by default: twice that of a 50 µm digital mammogram."""
HEADER_BYTES = 2**26
"""Of a file, besides its pixels."""
_REMEDY = f"--max-pixels or {MAX_PIXELS_VARIABLE} sets another limit"


def max_pixels() -> int:
    """Most pixels of a film; raises :class:`UserError` where the variable is no such number."""
    text = os.environ.get(MAX_PIXELS_VARIABLE)
    if text is None:
        return MAX_PIXELS
    if not (text.isdecimal() and int(text) > 0):
        raise UserError(f"{MAX_PIXELS_VARIABLE}={text}: needs a number of pixels, from 1")
    return int(text)


def max_file_bytes() -> int:
    """Largest file, also after inflation: 16 bits a pixel, and its header."""
    return 2 * max_pixels() + HEADER_BYTES


def _max_side() -> int:
    """Grows with a larger budget, so that a square film of so many pixels is taken."""
    return max(MAX_SIDE, isqrt(max_pixels()))


@contextmanager
def pixel_budget(pixels: int | None) -> Iterator[None]:
    """Films have at most so many pixels within, here and in processes that are started here.

    None keeps the limit that is there.
    """
    if pixels is None:
        yield
        return
    before = os.environ.get(MAX_PIXELS_VARIABLE)
    os.environ[MAX_PIXELS_VARIABLE] = str(pixels)
    try:
        yield
    finally:
        if before is None:
            del os.environ[MAX_PIXELS_VARIABLE]
        else:
            os.environ[MAX_PIXELS_VARIABLE] = before


def check_size(path: Path, rows: int, columns: int) -> None:
    """Raises :class:`UserError` where a header claims more pixels than a film has, or none."""
    if min(rows, columns) < 1:
        raise UserError(f"{path}: claims {rows}x{columns} pixels; the file is damaged")
    if max(rows, columns) > _max_side() or rows * columns > max_pixels():
        raise UserError(f"{path}: {too_many_pixels(f', {rows}x{columns}')}")


def too_many_pixels(claim: str = "") -> str:
    """What is wrong with a header; ``claim`` is what it says, behind a comma."""
    return (
        f"the header claims too many pixels{claim} (at most {_max_side()} a side and "
        f"{max_pixels()} in all; {_REMEDY})"
    )


def check_file_size(path: Path) -> None:
    """Raises :class:`UserError` where a file is larger than any film."""
    if path.stat().st_size > max_file_bytes():
        raise UserError(f"{path}: {larger_than_any_film()}")


def larger_than_any_film() -> str:
    """What is wrong with a file or message of more bytes than :func:`max_file_bytes`."""
    return f"is larger than any single film (at most {max_file_bytes() // 2**20} MiB; {_REMEDY})"
