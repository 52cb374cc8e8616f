"""Run-length decoding against pydicom's encoder, and what is refused."""

import struct

import numpy as np
import pytest
from dicom_files import mammogram
from pydicom.encaps import get_frame
from pydicom.uid import RLELossless

from hmc_fast.data.rle import decode_rle

FILM = np.random.default_rng(1).integers(0, 9, (20, 30), np.uint16) * 300


def encoded() -> bytes:
    dataset = mammogram(FILM)
    dataset.compress(RLELossless)
    return get_frame(dataset.PixelData, 0, number_of_frames=1)


def test_the_film_that_was_encoded() -> None:
    np.testing.assert_array_equal(decode_rle(encoded(), 20, 30, 2), FILM)


def test_missing_bytes_and_segments() -> None:
    frame = encoded()
    for damaged, message in (
        (frame[:40], "header is cut"),
        (frame[: len(frame) // 2], "segment"),
        (frame[:-60], "segment of .* bytes"),
        (struct.pack("<L", 3) + frame[4:], "3 RLE segments"),
        (frame[:8] + struct.pack("<L", 2**31) + frame[12:], "outside of its frame"),
    ):
        with pytest.raises(ValueError, match=message):
            decode_rle(damaged, 20, 30, 2)


def test_runs_beyond_the_film_are_not_written() -> None:
    runs = b"\x81\x00" * 2**16  # 8 MiB when decoded
    frame = struct.pack("<16L", 1, 64, *[0] * 14) + runs
    with pytest.raises(ValueError, match="segment of 128 bytes, 100 are needed"):
        decode_rle(frame, 10, 10, 1)
