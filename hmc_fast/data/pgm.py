"""What decoders of PGM and PPM let pass: headers without an end, and samples that cannot be."""

import re
from pathlib import Path

import numpy as np

HEADER_BYTES = 2**16
"""Of a header with its comments. A decoder reads a longer one byte by byte, for minutes."""
_GAP = rb"(?:\s|#[^\r\n]*[\r\n])+"
_NUMBER = rb"([^\s#]+)"
_BITMAP = rb"P[14]" + _GAP + _NUMBER + _GAP + _NUMBER + rb"[\s#]"
_HEADER = re.compile(_BITMAP + rb"|P[^\s#]{1,5}" + (_GAP + _NUMBER) * 3 + rb"\s")
_MAGIC = re.compile(rb"P[0-6fy]")
"""What Pillow takes for a header."""
CHANNELS = {b"P5": 1, b"P6": 3}
"""Samples a pixel of the kinds whose samples are bytes."""


def check_header(path: Path) -> None:
    """Raises ``ValueError`` where a header does not end in :data:`HEADER_BYTES`."""
    start = _start(path)
    if len(start) == HEADER_BYTES and _MAGIC.match(start) and not _HEADER.match(start):
        raise ValueError(f"its header does not end in {HEADER_BYTES} bytes")


def check_samples(path: Path) -> None:
    """Raises ``ValueError`` where samples are above their maximum, or more than the pixels.

    A decoder cuts the former off. The latter are another picture, or line ends that a program has
    changed, which moves all pixels by one.
    """
    start = _start(path)
    header = _HEADER.match(start)
    if header is None or start[:2] not in CHANNELS:
        return
    columns, rows, most = (int(text) for text in header.groups()[2:])
    samples = np.fromfile(path, ">u2" if most > 255 else "u1", offset=header.end())
    needed = rows * columns * CHANNELS[start[:2]]
    if samples[:needed].max(initial=0) > most:
        raise ValueError(f"a sample is above {most}, the largest that the header allows")
    more = path.stat().st_size - header.end() - needed * samples.itemsize
    crlf = start[header.end() - 1 : header.end() + 1] == b"\r\n"
    if more > 0 and (crlf or samples[needed:].tobytes().strip()):
        raise ValueError(f"{more} bytes more than its pixels")


def _start(path: Path) -> bytes:
    with path.open("rb") as file:
        return file.read(HEADER_BYTES)
