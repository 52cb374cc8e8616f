"""DICOM's run-length encoding (PS3.5 annex G), decoded strictly and never beyond its size."""

import struct

import numpy as np
from numpy.typing import NDArray

HEADER_BYTES = 64


def decode_rle(frame: bytes, rows: int, columns: int, sample_bytes: int) -> NDArray[np.integer]:
    """Pixels ``[rows, columns]``, of 1 or 2 bytes; raises ``ValueError`` where bytes are missing.

    Each byte of the samples is a segment of its own, the most significant first.
    """
    if len(frame) < HEADER_BYTES:
        raise ValueError("the RLE header is cut")
    count, *offsets = struct.unpack("<16L", frame[:HEADER_BYTES])
    if count != sample_bytes:
        raise ValueError(f"{count} RLE segments, {sample_bytes} are needed")
    ends = [*offsets[1:count], len(frame)]
    planes = np.empty((rows * columns, sample_bytes), np.uint8)
    for index, (start, end) in enumerate(zip(offsets, ends, strict=False)):
        if not HEADER_BYTES <= start < end <= len(frame):
            raise ValueError("an RLE segment lies outside of its frame")
        plane = _decode_segment(frame[start:end], rows * columns)
        planes[:, sample_bytes - 1 - index] = np.frombuffer(plane, np.uint8)
    return planes.view(f"<u{sample_bytes}").reshape(rows, columns)


def _decode_segment(segment: bytes, size: int) -> bytes:
    result, position = bytearray(), 0
    while len(result) < size and position < len(segment):
        code = segment[position]
        if code > 128:
            result += segment[position + 1 : position + 2] * (257 - code)
            position += 2
        elif code < 128:
            result += segment[position + 1 : position + 2 + code]
            position += 2 + code
        else:
            position += 1
    if len(result) != size:
        raise ValueError(f"an RLE segment of {len(result)} bytes, {size} are needed")
    return bytes(result)
