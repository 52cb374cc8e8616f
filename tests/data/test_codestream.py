"""Headers of codestreams: what they claim, and what no decoder gets to see."""

import re
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from dicom_files import codestream
from PIL import Image
from pydicom.uid import JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless

from hmc_fast.data.codestream import read_codestream

NOISE = np.random.default_rng(1).integers(0, 4096, (40, 48), np.uint16)


@pytest.mark.parametrize(
    ("syntax", "codec"),
    [(JPEGLosslessSV1, "jpeg"), (JPEGLSLossless, "jpeg-ls"), (JPEG2000Lossless, "jpeg-2000")],
)
def test_headers_as_encoded_and_cut(tmp_path: Path, syntax: str, codec: str) -> None:
    frame = codestream(NOISE, syntax, tmp_path)
    header = read_codestream(frame)
    assert (header.codec, header.rows, header.columns, header.components) == (codec, 40, 48, 1)
    assert header.bits in (12, 16)
    assert not header.signed
    for length in range(20):
        with pytest.raises(ValueError, match="codestream|cut|JPEG"):
            read_codestream(frame[:length])


@pytest.mark.parametrize(
    ("insert", "message"),
    [
        (b"\xff\xdc\x00\x04\xff\xff", "marker DC has no place"),
        (b"\xff\xc3\x00\x0b\x0c\x00\x28\x00\x30\x01\x01\x11\x00", "two JPEG frame headers"),
        (b"\xff\xc9\x00\x0b\x0c\x00\x28\x00\x30\x01\x01\x11\x00", "marker C9 has no place"),
        (b"\xff\xe0\xff\xff", "marker E0 is cut"),
        (b"\x00\x00\x00\x00", "no JPEG marker"),
    ],
)
def test_markers_that_mislead_a_decoder(tmp_path: Path, insert: bytes, message: str) -> None:
    frame = codestream(NOISE, JPEGLosslessSV1, tmp_path)
    scan = frame.index(b"\xff\xda")
    with pytest.raises(ValueError, match=message):
        read_codestream(frame[:scan] + insert + frame[scan:])


def test_a_jpeg_without_an_end(tmp_path: Path) -> None:
    frame = codestream(NOISE, JPEGLosslessSV1, tmp_path)
    with pytest.raises(ValueError, match="has no end"):
        read_codestream(frame[:-2])


@pytest.mark.parametrize("mode", ["L", "RGB"])
def test_a_progressive_jpeg_needs_all_of_its_scans(mode: str) -> None:
    stream = BytesIO()
    picture = Image.fromarray((NOISE // 16).astype(np.uint8)).convert(mode)
    picture.save(stream, "JPEG", progressive=True, quality=90)
    frame = stream.getvalue()
    assert read_codestream(frame).components == len(mode)
    scans = [match.start() for match in re.finditer(b"\xff\xda", frame)]
    assert len(scans) > 4
    for scan in scans[1:]:  # a table may go before it
        cut = frame[: frame.rindex(b"\xff\xc4", 0, scan)] + b"\xff\xd9"
        with pytest.raises(ValueError, match="lacks scans"):
            read_codestream(cut)


def test_a_jpeg_2000_with_a_hole_or_without_an_end(tmp_path: Path) -> None:
    frame = codestream(NOISE, JPEG2000Lossless, tmp_path)
    middle = len(frame) // 2
    assert read_codestream(frame + bytes(300)) == read_codestream(frame)
    with pytest.raises(ValueError, match="a hole of zeros"):
        read_codestream(frame[:middle] + bytes(300) + frame[middle + 300 :])
    with pytest.raises(ValueError, match="JPEG 2000 has no end"):
        read_codestream(frame[:middle] + bytes(300))
