"""Whether a PNG holds all of its rows: decoders draw the missing ones black without a word."""

import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

SIGNATURE_BYTES = 8
CHANNELS = {0: 1, 2: 3, 3: 1, 4: 2, 6: 4}
"""Samples a pixel by PNG's colour type."""
ADAM7 = ((0, 0, 8, 8), (4, 0, 8, 8), (0, 4, 4, 8), (2, 0, 4, 4), (0, 2, 2, 4), (1, 0, 2, 2),
         (0, 1, 1, 2))  # fmt: skip
"""First column, first row and steps of the passes of an interlaced PNG."""
_CHUNK_BYTES = 2**20


def png_depth(path: Path) -> tuple[int, int]:
    """Bits a sample and samples a pixel; raises ``ValueError`` for an unknown colour type."""
    _, _, bits, colour, _ = _header(path)
    return bits, CHANNELS[colour]


def check_rows(path: Path) -> None:
    """Raises ``ValueError`` where the compressed rows are fewer than the header says."""
    width, height, bits, colour, interlaced = _header(path)
    passes = ADAM7 if interlaced else ((0, 0, 1, 1),)
    needed = 0
    for left, top, across, down in passes:
        columns, rows = -((left - width) // across), -((top - height) // down)
        if columns > 0 and rows > 0:
            needed += rows * (1 + (columns * bits * CHANNELS[colour] + 7) // 8)
    inflater, there = zlib.decompressobj(), 0
    for chunk in _chunks(path):
        rest = chunk
        while rest and there < needed:
            there += len(inflater.decompress(rest, _CHUNK_BYTES))
            rest = inflater.unconsumed_tail
    if there < needed:
        raise ValueError(f"{there} of {needed} bytes of pixels are there")


def _header(path: Path) -> tuple[int, int, int, int, bool]:
    """Columns, rows, bits, colour type, and whether it is interlaced."""
    with path.open("rb") as file:
        start = file.read(SIGNATURE_BYTES + 8 + 13)
    if len(start) < SIGNATURE_BYTES + 8 + 13:
        raise ValueError("the header is cut")
    width, height, bits, colour, _, _, interlace = struct.unpack(">2I5B", start[-13:])
    if colour not in CHANNELS:
        raise ValueError(f"unknown colour type {colour}")
    return width, height, bits, colour, bool(interlace)


def _chunks(path: Path) -> Iterator[bytes]:
    """The compressed data."""
    with path.open("rb") as file:
        file.seek(SIGNATURE_BYTES)
        while len(start := file.read(8)) == 8:
            length, name = struct.unpack(">I4s", start)
            if name == b"IDAT":
                yield file.read(length)
                file.seek(4, 1)
            else:
                file.seek(length + 4, 1)
