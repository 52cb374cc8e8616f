"""The DICOM greyscale chain on real mammograms and against the standard's formulas."""

from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.sequence import Sequence
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

from hmc_fast import UserError
from hmc_fast.data import Preprocessing, read_pixels
from hmc_fast.data.greyscale import greyscale

STORED = np.arange(0, 4096, 13, dtype=np.uint16)[:315].reshape(-1, 5)


def mammogram(stored: NDArray[np.generic] = STORED, **attributes: object) -> Dataset:
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.2"
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = generate_uid()
    dataset.Modality = "MG"
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.SamplesPerPixel = 1
    dataset.Rows, dataset.Columns = stored.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelRepresentation = int(stored.dtype == np.int16)
    dataset.PixelData = stored.tobytes()
    for name, value in attributes.items():
        setattr(dataset, name, value)
    return dataset


def save(dataset: Dataset, path: Path) -> Path:
    dataset.save_as(path, enforce_file_format=True)
    return path


def lut(first: int, bits: int, entries: list[int]) -> Dataset:
    item = Dataset()
    item.add_new(0x00283002, "US", [len(entries), first, bits])
    item.add_new(0x00283006, "US", entries)
    return item


def test_without_window_the_stored_range_is_the_scale() -> None:
    np.testing.assert_allclose(greyscale(STORED, mammogram()), STORED / 4095, rtol=1e-6)


@pytest.mark.parametrize(
    ("function", "formula"),
    [
        ("LINEAR", lambda x, c, w: np.clip((x - (c - 0.5)) / (w - 1) + 0.5, 0, 1)),
        ("LINEAR_EXACT", lambda x, c, w: np.clip((x - c) / w + 0.5, 0, 1)),
        ("SIGMOID", lambda x, c, w: 1 / (1 + np.exp(-4 * (x - c) / w))),
    ],
)
def test_the_first_window_by_the_formulas_of_ps3_3_c_11_2(function: str, formula: object) -> None:
    dataset = mammogram(
        WindowCenter=[2000, 100], WindowWidth=[1500, 9], VOILUTFunction=function,
        RescaleSlope=2, RescaleIntercept=-100,
    )  # fmt: skip
    expected = formula(STORED * 2.0 - 100, 2000, 1500)  # type: ignore[operator]
    np.testing.assert_allclose(greyscale(STORED, dataset), expected, atol=1e-6)


def test_monochrome1_is_inverted_after_the_window() -> None:
    attributes = {"WindowCenter": 1000, "WindowWidth": 700}
    upright = greyscale(STORED, mammogram(**attributes))
    inverted = greyscale(STORED, mammogram(PhotometricInterpretation="MONOCHROME1", **attributes))
    np.testing.assert_allclose(inverted, 1 - upright, atol=1e-6)


def test_signed_values_and_the_voi_lut() -> None:
    signed = np.arange(-2048, 2048, 16, dtype=np.int16).reshape(-1, 4)
    np.testing.assert_allclose(
        greyscale(signed, mammogram(signed)), (signed + 2048) / 4095, atol=1e-6
    )
    table = [0, 10, 200, 255]
    dataset = mammogram(VOILUTSequence=Sequence([lut(100, 8, table)]))
    stored = np.array([[0, 100, 101, 102, 103, 4000]], np.uint16)
    np.testing.assert_allclose(
        greyscale(stored, dataset), np.array([[0, 0, 10, 200, 255, 255]]) / 255, atol=1e-6
    )


def test_a_modality_lut_sets_the_range(tmp_path: Path) -> None:
    item = lut(0, 16, [0, 500, 65535])
    item.ModalityLUTType = "US"
    stored = np.array([[0, 1, 2, 9]], np.uint16)
    dataset = mammogram(stored, ModalityLUTSequence=Sequence([item]))
    np.testing.assert_allclose(
        read_pixels(save(dataset, tmp_path / "lut.dcm")),
        np.array([[0, 500, 65535, 65535]]) / 65535,
        atol=1e-6,
    )


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
    frames = mammogram(NumberOfFrames=2, PixelData=STORED.tobytes() * 2)
    with pytest.raises(UserError, match="holds 2 frames"):
        read_pixels(save(frames, tmp_path / "frames.dcm"))
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


@pytest.mark.real_data
def test_the_vendors_first_voi_lut_is_used(real_data: Path) -> None:
    path = real_data / "dicom" / "ge_ffdm_jpeglossless_voilut_sigmoid.dcm"
    dataset = dcmread(path)
    length, first, bits = dataset.VOILUTSequence[0].LUTDescriptor
    table = np.asarray(dataset.VOILUTSequence[0].LUTData)
    expected = table[np.clip(dataset.pixel_array.astype(int) - first, 0, length - 1)]
    np.testing.assert_allclose(read_pixels(path), expected / (2**bits - 1), atol=1e-6)
    del dataset.VOILUTSequence
    sigmoid = 1 / (1 + np.exp(-4 * (dataset.pixel_array.astype(float) - 2653) / 900))
    np.testing.assert_allclose(greyscale(dataset.pixel_array, dataset), sigmoid, atol=1e-4)
