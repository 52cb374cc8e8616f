"""Mammograms in DICOM: the greyscale chain of PS3.4 N.2 and PS3.3 C.11, C.7.6.3.

Stored values → Modality LUT or rescale → VOI LUT or window (LINEAR, LINEAR_EXACT, SIGMOID; the
first of several) → MONOCHROME1 inverted → scaled to 0…1 by the range that the last step can give,
never by the picture's own extremes.
"""

import warnings
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom import dcmread
from pydicom.dataset import Dataset, FileDataset
from pydicom.errors import InvalidDicomError
from pydicom.pixels.processing import apply_modality_lut, apply_voi_lut

from hmc_fast.errors import UserError

MAX_SIDE = 16_384
"""Largest height or width of a film that is read: twice that of a 50 µm digital mammogram."""
PREAMBLE_BYTES = 128
MAGIC = b"DICM"
PHOTOMETRIC_INTERPRETATIONS = ("MONOCHROME1", "MONOCHROME2")
MAMMOGRAPHY_MODALITY = "MG"
MAMMOGRAPHY_SOP_CLASSES = (
    "1.2.840.10008.5.1.4.1.1.1.2",  # For Presentation
    "1.2.840.10008.5.1.4.1.1.1.2.1",  # For Processing
)
RADIOGRAPHIC_MODALITIES = ("CR", "DX", "RG", "OT")
"""Modalities under which older mammograms travel; accepted where the body part is the breast."""


def is_dicom(path: Path) -> bool:
    """True for a file with DICOM's preamble, or one named ``.dcm``."""
    with path.open("rb") as file:
        file.seek(PREAMBLE_BYTES)
        return file.read(len(MAGIC)) == MAGIC or path.suffix.lower() == ".dcm"


def read_dicom(path: Path) -> NDArray[np.float32]:
    """Greyscale pixels ``[H, W]`` in 0…1, bright tissue on a dark ground.

    Raises :class:`UserError` where the file is damaged, holds no single greyscale picture or no
    mammogram.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            dataset = dcmread(path)
            _check_is_mammogram(path, dataset)
            return greyscale(_stored_pixels(path, dataset), dataset)
        except UserError:
            raise
        except InvalidDicomError:
            raise UserError(f"{path}: is not a DICOM file (no DICM marker)") from None
        except Exception as error:  # a damaged file can break parser and transforms anywhere
            raise UserError(f"{path}: is damaged ({_summary(error)})") from None


def dicom_size(path: Path) -> tuple[int, int]:
    """Rows and columns, by the header alone; raises :class:`UserError` where it is damaged."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            header = dcmread(path, stop_before_pixels=True, specific_tags=["Rows", "Columns"])
            return int(header.Rows), int(header.Columns)
        except Exception as error:  # a damaged header can break the parser anywhere
            raise UserError(f"{path}: is damaged ({_summary(error)})") from None


def _stored_pixels(path: Path, dataset: FileDataset) -> NDArray[np.generic]:
    if max(int(dataset.Rows), int(dataset.Columns)) > MAX_SIDE:
        raise UserError(
            f"{path}: claims {dataset.Rows}x{dataset.Columns} pixels; at most {MAX_SIDE} a side"
        )
    try:
        stored = dataset.pixel_array
    except Exception as error:  # decoders raise whatever their C libraries do
        syntax = dataset.file_meta.get("TransferSyntaxUID")
        name = syntax.name if syntax else "no transfer syntax"
        raise UserError(
            f"{path}: its pixels cannot be decoded ({name}: {_summary(error)})"
        ) from None
    if stored.ndim != 2:
        raise UserError(f"{path}: holds {stored.shape[0]} frames, give one picture a file")
    return stored


def _summary(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]


def greyscale(stored: NDArray[np.generic], dataset: Dataset) -> NDArray[np.float32]:
    """Stored values to presentation values in 0…1, by the attributes of ``dataset``.

    Raises ``ValueError`` for a transform whose result has no range.
    """
    lowest, highest = _modality_range(dataset)
    values = apply_modality_lut(stored, dataset)
    values = np.asarray(apply_voi_lut(values, dataset, index=0, prefer_lut=True), np.float64)
    if "VOILUTSequence" in dataset:
        lowest, highest = 0.0, float(2 ** int(dataset.VOILUTSequence[0].LUTDescriptor[2]) - 1)
    if not highest > lowest:
        raise ValueError("modality or VOI transform without a range")
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        values = (highest + lowest) - values
    scaled = (values - lowest) / (highest - lowest)
    return np.clip(scaled, 0.0, 1.0).astype(np.float32)


def _check_is_mammogram(path: Path, dataset: FileDataset) -> None:
    modality = dataset.get("Modality", "")
    body_part = dataset.get("BodyPartExamined", "")
    if not (
        modality == MAMMOGRAPHY_MODALITY
        or dataset.get("SOPClassUID") in MAMMOGRAPHY_SOP_CLASSES
        or (modality in RADIOGRAPHIC_MODALITIES and body_part == "BREAST")
    ):
        raise UserError(
            f"{path}: is no mammogram (modality {modality or 'absent'}, body part "
            f"{body_part or 'absent'}); MG is needed, or a radiograph of the BREAST"
        )
    if "PixelData" not in dataset:
        raise UserError(f"{path}: has no pixels (no PixelData element)")
    photometric = dataset.get("PhotometricInterpretation", "absent")
    if photometric not in PHOTOMETRIC_INTERPRETATIONS:
        raise UserError(
            f"{path}: has photometric interpretation {photometric}, needs MONOCHROME1 or 2"
        )


def _modality_range(dataset: Dataset) -> tuple[float, float]:
    """Lowest and highest value that can leave the modality transform (PS3.3 C.11.2.1.2)."""
    if dataset.get("ModalityLUTSequence"):
        return 0.0, float(2 ** int(dataset.ModalityLUTSequence[0].LUTDescriptor[2]) - 1)
    bits = int(dataset.BitsStored)
    signed = dataset.PixelRepresentation == 1
    lowest, highest = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    slope = float(dataset.get("RescaleSlope", 1))
    if not slope > 0:
        raise ValueError(f"rescale slope {slope} is not positive")
    intercept = float(dataset.get("RescaleIntercept", 0))
    return lowest * slope + intercept, highest * slope + intercept
