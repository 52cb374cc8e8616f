"""Headers of JPEG, JPEG-LS and JPEG 2000 codestreams: what a decoder would be asked to do.

A decoder in C allocates and believes what stands here, so it is compared with the data set first.
"""

import re
import struct
from dataclasses import dataclass
from typing import Literal

SOI, EOI, SOS, DNL = 0xD8, 0xD9, 0xDA, 0xDC
PROGRESSIVE = 0xC2
AFTER_A_SCAN = re.compile(rb"\xff[^\x00\xff\xd0-\xd7]")
"""A marker; within a scan are only restarts and stuffed bytes."""
COEFFICIENTS = 64
END = bytes((0xFF, EOI))
"""The last marker of JPEG, JPEG-LS and JPEG 2000; padding may follow."""
FRAME_HEADERS: dict[int, Literal["jpeg", "jpeg-ls"]] = {
    0xC0: "jpeg",  # baseline
    0xC1: "jpeg",  # extended
    PROGRESSIVE: "jpeg",
    0xC3: "jpeg",  # lossless
    0xF7: "jpeg-ls",
}
OTHER_FRAME_HEADERS = {0xC5, 0xC6, 0xC7, 0xC9, 0xCA, 0xCB, 0xCD, 0xCE, 0xCF}
"""Hierarchical and arithmetic JPEG, which no transfer syntax of films has."""
JPEG_2000 = b"\xff\x4f\xff\x51"
COD, SOT, SOD = 0x52, 0x90, 0x93
BYPASS = 0x01
"""Code-block style in which bits are stored as they are, so that zeros may follow each other."""
HIGH_THROUGHPUT = 0x40
SPARE_ZEROS = 64


@dataclass(frozen=True)
class Codestream:
    """Size, components and bits of a codestream, and whether its samples are signed."""

    codec: Literal["jpeg", "jpeg-ls", "jpeg-2000"]
    rows: int
    columns: int
    components: int
    bits: int
    signed: bool = False


def read_codestream(frame: bytes) -> Codestream:
    """The header of a codestream; raises ``ValueError`` where it is damaged or of no known kind."""
    try:
        if frame[:4] == JPEG_2000:
            return _read_jpeg_2000(frame)
        if frame[:2] == bytes((0xFF, SOI)):
            return _read_jpeg(frame)
    except (struct.error, IndexError):
        raise ValueError("the header of the codestream is cut") from None
    raise ValueError("the codestream is no JPEG, JPEG-LS or JPEG 2000")


def _read_jpeg(frame: bytes) -> Codestream:
    """The one frame header before the first scan."""
    header: Codestream | None = None
    progressive = False
    position = 2
    while True:
        if frame[position] != 0xFF:
            raise ValueError(f"no JPEG marker at byte {position}")
        while frame[position + 1] == 0xFF:
            position += 1
        marker = frame[position + 1]
        (length,) = struct.unpack_from(">H", frame, position + 2)
        if length < 2 or position + 2 + length > len(frame):
            raise ValueError(f"JPEG marker {marker:02X} is cut")
        if marker in OTHER_FRAME_HEADERS or marker in (SOI, EOI, DNL):
            raise ValueError(f"JPEG marker {marker:02X} has no place in a film")
        if marker in FRAME_HEADERS:
            if header is not None:
                raise ValueError("two JPEG frame headers")
            bits, rows, columns, components = struct.unpack_from(">BHHB", frame, position + 4)
            header = Codestream(FRAME_HEADERS[marker], rows, columns, components, bits)
            progressive = marker == PROGRESSIVE
        if marker == SOS:
            break
        position += 2 + length
    if header is None:
        raise ValueError("no JPEG frame header before the scan")
    if frame.rfind(END) < position:
        raise ValueError("the JPEG has no end")
    if progressive:
        _check_scans(frame, position, header.components)
    return header


def _check_scans(frame: bytes, position: int, components: int) -> None:
    """Raises ``ValueError`` for a progressive JPEG that lacks scans (ITU-T T.81, G.1.1.1).

    A decoder draws what came before them, coarser than the film, without a word. ``position`` is
    that of the first scan.
    """
    bits_missing: dict[int, list[int]] = {}
    while frame[position + 1] != EOI:
        (length,) = struct.unpack_from(">H", frame, position + 2)
        end = position + 2 + length
        if frame[position + 1] == SOS:
            first, last, approximation = struct.unpack_from(">3B", frame, end - 3)
            for selector in frame[position + 5 : end - 3 : 2]:
                missing = bits_missing.setdefault(selector, [16] * COEFFICIENTS)
                sent = len(missing[first : last + 1])
                missing[first : last + 1] = [approximation & 0x0F] * sent
        following = AFTER_A_SCAN.search(frame, end)
        if following is None:
            break
        position = following.start()
    if len(bits_missing) < components or any(map(any, bits_missing.values())):
        raise ValueError("the progressive JPEG lacks scans")


def _read_jpeg_2000(frame: bytes) -> Codestream:
    _, width, height, left, top, tile_width, tile_height, _, _, components = struct.unpack_from(
        ">H8IH", frame, 6
    )
    depth, step_across, step_down = struct.unpack_from(">3B", frame, 42)
    if step_across != 1 or step_down != 1 or not tile_width or not tile_height:
        raise ValueError("JPEG 2000 with subsampled components or without tiles")
    _check_zeros(frame)
    return Codestream(
        "jpeg-2000", height - top, width - left, components, (depth & 0x7F) + 1, depth > 0x7F
    )


def _check_zeros(frame: bytes) -> None:
    """Raises ``ValueError`` for a run of zeros that no encoder writes.

    A decoder reads zeros as empty packets and draws nothing, without a word. More empty packets
    than a tile has, one byte each, can only be a hole.
    """
    position = 4 + struct.unpack_from(">H", frame, 4)[0]
    packets = 0
    while packets == 0 and position < len(frame):
        mark, marker, length = struct.unpack_from(">BBH", frame, position)
        if mark != 0xFF or marker in (SOT, SOD):
            raise ValueError("JPEG 2000 without coding style")
        if marker == COD:
            style, _, layers, _, levels, _, _, block_style = struct.unpack_from(
                ">BBHBBBBB", frame, position + 4
            )
            precincts_given = bool(style & 1)
            if precincts_given or block_style & (BYPASS | HIGH_THROUGHPUT):
                return
            packets = layers * (levels + 1)
        position += 2 + length
    end = frame.rfind(END)
    if end < position:
        raise ValueError("the JPEG 2000 has no end")
    if bytes(packets + SPARE_ZEROS) in frame[position:end]:
        raise ValueError("the JPEG 2000 has a hole of zeros")
