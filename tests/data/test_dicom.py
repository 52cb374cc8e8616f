"""DICOM mammograms: what is read, what is refused from the header, what damage says."""

import zlib
from pathlib import Path

import numpy as np
import pytest
from dicom_files import STORED, codestream, mammogram, save, with_frame
from openjpeg.utils import encode_array
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO
from pydicom.filewriter import write_dataset, write_file_meta_info
from pydicom.sequence import Sequence
from pydicom.uid import (
    DeflatedExplicitVRLittleEndian,
    HTJ2KLossless,
    HTJ2KLosslessRPCL,
    JPEG2000Lossless,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    JPEGLSLossless,
    RLELossless,
    generate_uid,
)

from hmc_fast import UserError
from hmc_fast.data import FilmCache, Preprocessing, limits, read_pixels
from hmc_fast.data.limits import MAX_PIXELS_VARIABLE, max_file_bytes
from hmc_fast.data.pixels import film_header

COMPRESSED = (JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless)
NOISE = np.random.default_rng(1).integers(0, 4096, (40, 48), np.uint16)


@pytest.mark.parametrize("slope", [0, -1])
def test_transforms_without_a_range_are_refused(tmp_path: Path, slope: int) -> None:
    dataset = mammogram(RescaleSlope=slope, RescaleIntercept=0)
    with pytest.raises(UserError, match="is damaged .*is not positive"):
        read_pixels(save(dataset, tmp_path / "a.dcm"))


def test_files_that_are_no_mammogram(tmp_path: Path) -> None:
    chest = mammogram(
        Modality="CT", BodyPartExamined="CHEST", SOPClassUID="1.2.840.10008.5.1.4.1.1.2"
    )
    with pytest.raises(UserError, match="no mammogram .modality CT, body part CHEST"):
        read_pixels(save(chest, tmp_path / "chest.dcm"))
    report = mammogram()
    del report.PixelData
    with pytest.raises(UserError, match="has no pixels"):
        read_pixels(save(report, tmp_path / "report.dcm"))
    colour = mammogram(PhotometricInterpretation="RGB")
    with pytest.raises(UserError, match="photometric interpretation RGB"):
        read_pixels(save(colour, tmp_path / "colour.dcm"))
    contradiction = mammogram(PresentationLUTShape="INVERSE")
    with pytest.raises(UserError, match="MONOCHROME2 with presentation LUT shape INVERSE"):
        read_pixels(save(contradiction, tmp_path / "contradiction.dcm"))
    frames = mammogram(NumberOfFrames=2, PixelData=STORED.tobytes() * 2)
    with pytest.raises(UserError, match="holds 2 frames"):
        read_pixels(save(frames, tmp_path / "frames.dcm"))
    for intent in ("for processing", ["FOR PRESENTATION", "FOR PROCESSING"]):
        raw = mammogram(PresentationIntentType=intent)
        with pytest.raises(UserError, match="is a raw detector image"):
            read_pixels(save(raw, tmp_path / "raw.dcm"))
    radiograph = mammogram(Modality="RG", BodyPartExamined="BREAST", SOPClassUID=generate_uid())
    assert read_pixels(save(radiograph, tmp_path / "rg.dcm")).shape == STORED.shape


@pytest.mark.parametrize("keep", [10, 132, 140, 200, 400, 900])
def test_truncated_files(tmp_path: Path, keep: int) -> None:
    whole = save(mammogram(), tmp_path / "whole.dcm").read_bytes()
    path = tmp_path / "cut.dcm"
    path.write_bytes(whole[:keep])
    with pytest.raises(UserError, match="cut.dcm") as caught:
        read_pixels(path)
    assert "\n" not in str(caught.value)


@pytest.mark.real_data
def test_one_picture_in_every_transfer_syntax_and_polarity(real_data: Path) -> None:
    preprocessing = Preprocessing.square(224)
    for stem, count in (("malign_P00820_LCC", 6), ("benign_P00173_LMLO", 2)):
        paths = sorted((real_data / "dicom").glob(f"{stem}_*.dcm"))
        assert len(paths) == count
        films = [read_pixels(path) for path in paths]
        for path, film in zip(paths, films, strict=True):
            np.testing.assert_array_equal(film, films[0], err_msg=path.name)
            assert preprocessing(film).equal(preprocessing(films[0]))


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("name", "shape"),
    [
        ("cbis_benign_LMLO_rle.dcm", (4464, 2848)),
        ("ge_ffdm_jpeglossless_voilut_sigmoid.dcm", (3062, 2394)),
        ("wg04_MG1_j2k_lossy.dcm", (4664, 3064)),
    ],
)
def test_real_full_size_mammograms(real_data: Path, name: str, shape: tuple[int, int]) -> None:
    film = read_pixels(real_data / "dicom" / name)
    assert film.shape == shape
    assert film.min() >= 0
    assert 0.9 < film.max() <= 1
    assert 0.05 < film.mean() < 0.5


@pytest.mark.parametrize(
    "attributes",
    [
        {"PresentationIntentType": "FOR PROCESSING"},
        {"SOPClassUID": "1.2.840.10008.5.1.4.1.1.1.2.1"},
    ],
)
def test_raw_detector_images_are_refused_unless_allowed(
    tmp_path: Path, attributes: dict[str, object]
) -> None:
    path = save(mammogram(**attributes), tmp_path / "raw.dcm")
    with pytest.raises(UserError, match="raw.dcm: is a raw detector image .for processing."):
        read_pixels(path)
    np.testing.assert_allclose(read_pixels(path, allow_raw=True), STORED / 4095, rtol=1e-6)
    preprocessing = Preprocessing.square(32)
    with pytest.raises(UserError, match="is a raw detector image"):
        FilmCache(preprocessing).image(path)
    assert FilmCache(preprocessing, allow_raw=True).image(path).shape == (1, 32, 32)
    shown = save(mammogram(PresentationIntentType="FOR PRESENTATION"), tmp_path / "shown.dcm")
    assert read_pixels(shown).shape == STORED.shape


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"NumberOfFrames": 60}, "holds 60 frames"),
        ({"NumberOfFrames": 0}, "holds 0 frames"),
        ({"SOPClassUID": "1.2.840.10008.5.1.4.1.1.13.1.3"}, "is a breast tomosynthesis"),
        ({"Rows": 16384, "Columns": 16384}, "claims too many pixels, 16384x16384"),
        ({"Rows": 0}, "claims 0x5 pixels"),
        ({"HighBit": 15}, "the highest 15"),
        ({"BitsStored": 20}, "20 stored"),
        ({"BitsAllocated": 32}, "32 bits allocated"),
        ({"PixelRepresentation": 7}, "pixel representation 7"),
        ({"SamplesPerPixel": 3}, "needs MONOCHROME1 or 2 of one"),
    ],
)
def test_the_header_is_refused_before_a_frame_is_decoded(
    tmp_path: Path, attributes: dict[str, object], message: str
) -> None:
    dataset = with_frame(b"no codestream at all", RLELossless, mammogram(**attributes))
    path = save(dataset, tmp_path / "header.dcm")
    with pytest.raises(UserError, match=message):
        read_pixels(path)
    with pytest.raises(UserError, match=message):
        film_header(path)


def test_windows_in_functional_groups_are_refused(tmp_path: Path) -> None:
    window, group = Dataset(), Dataset()
    window.WindowCenter, window.WindowWidth = "1000", "10"
    group.FrameVOILUTSequence = Sequence([window])
    dataset = mammogram(SharedFunctionalGroupsSequence=Sequence([group]))
    with pytest.raises(UserError, match="window in functional groups"):
        read_pixels(save(dataset, tmp_path / "a.dcm"))


def test_a_header_that_does_not_touch_the_pixels_does_not_stop_them(tmp_path: Path) -> None:
    values = {
        "SpecificCharacterSet": ("ISO_IR 192", "NO_SUCH_IR"),
        "StudyDate": ("20200101", "99/99/99"),
        "StudyTime": ("1200", "noon"),
        "PatientAge": ("050Y", "old!"),
        "PatientSize": ("1.70", "tall"),
    }
    dataset = mammogram(**{name: good for name, (good, _) in values.items()})
    # A random UID may hold the digits of a time.
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = "1.2.3"
    path = save(dataset, tmp_path / "a.dcm")
    whole, content = read_pixels(path), path.read_bytes()
    for good, bad in values.values():
        assert content.count(good.encode()) == 1
        content = content.replace(good.encode(), bad.encode())
    path.write_bytes(content)
    np.testing.assert_array_equal(read_pixels(path), whole)
    # What stands behind the pixels may be cut or no DICOM at all.
    path.write_bytes(content + b"\xff\xff\x01\x00OB\x00\x00\xff\xff\xff\x7fcut")
    np.testing.assert_array_equal(read_pixels(path), whole)


@pytest.mark.filterwarnings("ignore::UserWarning")  # of pydicom, which writes it
def test_messages_hold_nothing_that_a_terminal_obeys(tmp_path: Path) -> None:
    dataset = mammogram(
        Modality="CT",
        BodyPartExamined="\x1b]0;x\x07CHEST" + "T" * 500,
        SOPClassUID="1.2.840.10008.5.1.4.1.1.2",
    )
    with pytest.raises(UserError, match="no mammogram") as caught:
        read_pixels(save(dataset, tmp_path / "a.dcm"))
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 400


def test_a_film_without_a_picture_is_refused(tmp_path: Path) -> None:
    dataset = mammogram(WindowCenter=100_000, WindowWidth=2)
    with pytest.raises(UserError, match="shows no picture"):
        read_pixels(save(dataset, tmp_path / "a.dcm"))


def deflated(content: bytes) -> bytes:
    meta = mammogram().file_meta
    meta.TransferSyntaxUID = DeflatedExplicitVRLittleEndian
    file = DicomBytesIO()
    write_file_meta_info(file, meta, enforce_standard=False)
    return bytes(128) + b"DICM" + file.getvalue() + content


@pytest.mark.parametrize("more", [10, 630, 6300])
def test_more_bytes_than_pixels_are_no_frames_and_no_narrower_film(
    tmp_path: Path, more: int
) -> None:
    longer = mammogram(PixelData=STORED.tobytes() + bytes(range(10)) * (more // 10))
    with pytest.raises(UserError, match=f"{more} bytes more than 63x5 pixels"):
        read_pixels(save(longer, tmp_path / "a.dcm"))
    narrower = mammogram(Columns=4)
    with pytest.raises(UserError, match="126 bytes more than 63x4 pixels"):
        read_pixels(save(narrower, tmp_path / "a.dcm"))
    padded = mammogram(PixelData=STORED.tobytes() + bytes(2))
    assert read_pixels(save(padded, tmp_path / "a.dcm")).shape == STORED.shape


def test_inflation_is_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = DicomBytesIO()
    file.is_little_endian, file.is_implicit_VR = True, False
    write_dataset(file, mammogram())
    compressor = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    good = compressor.compress(file.getvalue()) + compressor.flush()
    path = tmp_path / "a.dcm"
    path.write_bytes(deflated(good))
    np.testing.assert_allclose(read_pixels(path), STORED / 4095, rtol=1e-6)
    path.write_bytes(deflated(good[:-9]))
    with pytest.raises(UserError, match="is damaged"):
        read_pixels(path)

    monkeypatch.setattr(limits, "HEADER_BYTES", 2**20)
    monkeypatch.setenv(MAX_PIXELS_VARIABLE, str(STORED.size))
    compressor = zlib.compressobj(9, zlib.DEFLATED, -zlib.MAX_WBITS)
    bomb = compressor.compress(file.getvalue() + bytes(2**25)) + compressor.flush()
    path.write_bytes(deflated(bomb))
    with pytest.raises(UserError, match="larger than any single film when inflated"):
        read_pixels(path)


def test_a_file_larger_than_any_film_is_not_read(tmp_path: Path) -> None:
    path = save(mammogram(), tmp_path / "a.dcm")
    with path.open("r+b") as file:
        file.truncate(max_file_bytes() + 1)
    with pytest.raises(UserError, match="larger than any single film"):
        read_pixels(path)


@pytest.mark.parametrize("syntax", COMPRESSED)
@pytest.mark.parametrize("dtype", [np.uint16, np.int16])
def test_compressed_films_are_those_that_were_compressed(
    tmp_path: Path, syntax: str, dtype: type[np.generic]
) -> None:
    stored = (NOISE.astype(np.int32) - (2048 if dtype is np.int16 else 0)).astype(dtype)
    plain = read_pixels(save(mammogram(stored), tmp_path / "a.dcm"))
    frame = codestream(stored, syntax, tmp_path)
    path = save(with_frame(frame, syntax, mammogram(stored)), tmp_path / "b.dcm")
    np.testing.assert_array_equal(read_pixels(path), plain)


@pytest.mark.parametrize("syntax", COMPRESSED)
def test_a_codestream_that_contradicts_its_header_is_refused(tmp_path: Path, syntax: str) -> None:
    frame = codestream(NOISE, syntax, tmp_path)
    wrong = mammogram(NOISE[:-1])
    with pytest.raises(UserError, match="codestream has 40x48 pixels .* the header 39x48"):
        read_pixels(save(with_frame(frame, syntax, wrong), tmp_path / "a.dcm"))
    other = JPEGLSLossless if syntax == JPEG2000Lossless else JPEG2000Lossless
    with pytest.raises(UserError, match="cannot be decoded .*the codestream is jpeg"):
        read_pixels(save(with_frame(frame, other, mammogram(NOISE)), tmp_path / "a.dcm"))


def test_a_signed_codestream_needs_a_signed_header(tmp_path: Path) -> None:
    signed = NOISE.astype(np.int16) - 2048
    frame = encode_array(signed, bits_stored=12)
    path = save(with_frame(frame, JPEG2000Lossless, mammogram(signed)), tmp_path / "a.dcm")
    np.testing.assert_allclose(read_pixels(path), NOISE / 4095, atol=1e-6)
    path = save(with_frame(frame, JPEG2000Lossless, mammogram(NOISE)), tmp_path / "a.dcm")
    with pytest.raises(UserError, match="the codestream has signed values, the header unsigned"):
        read_pixels(path)


def test_what_gdcm_decodes_wrongly_is_refused(tmp_path: Path) -> None:
    frame = codestream(NOISE, JPEGLosslessSV1, tmp_path)
    path = save(with_frame(frame, JPEGExtended12Bit, mammogram(NOISE)), tmp_path / "a.dcm")
    with pytest.raises(UserError, match="GDCM does not decode 1[26] bits of it"):
        read_pixels(path)


@pytest.mark.parametrize("syntax", COMPRESSED)
def test_damage_within_a_codestream_is_refused(tmp_path: Path, syntax: str) -> None:
    frame = codestream(NOISE, syntax, tmp_path)
    middle = len(frame) // 2
    for damaged in (frame[:middle], frame[:middle] + bytes(400) + frame[middle + 400 :]):
        path = save(with_frame(damaged, syntax, mammogram(NOISE)), tmp_path / "a.dcm")
        with pytest.raises(UserError, match="cannot be decoded"):
            read_pixels(path)


def test_a_jpeg_ls_header_of_65535_a_side_leaves_the_process_alive(tmp_path: Path) -> None:
    frame = bytearray(codestream(NOISE, JPEGLSLossless, tmp_path))
    position = frame.index(b"\xff\xf7") + 5
    frame[position : position + 4] = b"\xff" * 4
    path = save(with_frame(bytes(frame), JPEGLSLossless, mammogram(NOISE)), tmp_path / "a.dcm")
    with pytest.raises(UserError, match="codestream has 65535x65535 pixels"):
        read_pixels(path)


@pytest.mark.parametrize("syntax", [HTJ2KLossless, HTJ2KLosslessRPCL], ids=str)
def test_htj2k_is_decoded_to_the_bit(syntax: str, tmp_path: Path) -> None:
    """The codestream is :data:`STORED`, losslessly compressed by OpenJPH 0.26.3."""
    frame = (Path(__file__).parents[1] / "golden" / "htj2k.j2c").read_bytes()
    compressed = save(with_frame(frame, syntax), tmp_path / "htj2k.dcm")
    plain = save(mammogram(), tmp_path / "plain.dcm")
    np.testing.assert_array_equal(read_pixels(compressed), read_pixels(plain))
