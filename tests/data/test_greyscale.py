"""The DICOM greyscale chain against the standard's formulas and on a vendor's film."""

from pathlib import Path

import numpy as np
import pytest
from dicom_files import STORED, lut, mammogram, save
from pydicom import dcmread
from pydicom.dataset import Dataset
from pydicom.sequence import Sequence

from hmc_fast import UserError
from hmc_fast.data import read_pixels
from hmc_fast.data.greyscale import greyscale


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


@pytest.mark.filterwarnings("ignore::UserWarning")  # of pydicom, which writes them
@pytest.mark.parametrize(
    "attributes",
    [
        {"WindowCenter": "nan", "WindowWidth": "100"},
        {"WindowCenter": "100", "WindowWidth": "nan"},
        {"WindowCenter": "1e300", "WindowWidth": "1e300"},
        {"RescaleSlope": "inf", "RescaleIntercept": "0"},
        {"RescaleSlope": "1", "RescaleIntercept": "nan"},
        {"RescaleSlope": "nan", "RescaleIntercept": "0"},
    ],
)
def test_transforms_that_are_not_finite_are_refused(
    tmp_path: Path, attributes: dict[str, str]
) -> None:
    path = save(mammogram(**attributes), tmp_path / "a.dcm")
    with pytest.raises(UserError, match="is damaged .*(no number that a film has|not positive)"):
        read_pixels(path)


def test_padding_is_background_in_both_polarities() -> None:
    stored = np.array([[0, 4095, 4000, 4050, 1000]], np.uint16)
    dataset = mammogram(stored, PixelPaddingValue=4000, PixelPaddingRangeLimit=4095)
    expected = np.array([[0, 0, 0, 0, 1000 / 4095]])
    np.testing.assert_allclose(greyscale(stored, dataset), expected, atol=1e-6)
    dataset.PhotometricInterpretation = "MONOCHROME1"
    expected = np.array([[1, 0, 0, 0, 3095 / 4095]])
    np.testing.assert_allclose(greyscale(stored, dataset), expected, atol=1e-6)
    signed = np.array([[-2048, -5, 1000]], np.int16)
    padded = mammogram(signed, PixelPaddingValue=-2048)
    expected = np.array([[0, 2043 / 4095, 3048 / 4095]])
    np.testing.assert_allclose(greyscale(signed, padded), expected, atol=1e-6)


def test_a_voi_lut_of_8_bits_takes_more_than_256_values() -> None:
    table = [*range(256)] * 16
    table.sort()
    stored = np.array([[0, 255, 256, 1000, 4095]], np.uint16)
    dataset = mammogram(stored, VOILUTSequence=Sequence([lut(0, 8, table)]))
    expected = np.array([[0, 15, 16, 62, 255]]) / 255
    np.testing.assert_allclose(greyscale(stored, dataset), expected, atol=1e-6)


def test_a_voi_lut_without_data_leaves_the_window() -> None:
    window = {"WindowCenter": 1000, "WindowWidth": 700}
    expected = greyscale(STORED, mammogram(**window))
    for sequence in (Sequence([]), Sequence([Dataset()])):
        dataset = mammogram(VOILUTSequence=sequence, **window)
        np.testing.assert_array_equal(greyscale(STORED, dataset), expected)


def test_a_lookup_table_shorter_than_it_says(tmp_path: Path) -> None:
    item = lut(0, 12, [1, 2, 3])
    item.LUTDescriptor = [9, 0, 12]
    dataset = mammogram(VOILUTSequence=Sequence([item]))
    with pytest.raises(UserError, match="a lookup table of 3 entries, not of 9"):
        read_pixels(save(dataset, tmp_path / "a.dcm"))


def test_an_entry_of_more_bits_than_a_lookup_table_has(tmp_path: Path) -> None:
    """It would be cut off to white."""
    table = lut(0, 8, [0, 100, 200, 300])
    dataset = mammogram(np.array([[0, 1], [2, 3]], np.uint16), VOILUTSequence=[table])
    with pytest.raises(UserError, match="an entry 300 in a lookup table of 8 bits"):
        read_pixels(save(dataset, tmp_path / "a.dcm"))
