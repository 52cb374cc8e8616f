"""Mammograms in DICOM.

All that can be told from the header is checked before a pixel is read or decoded; attributes that
do not touch the pixels are not read at all, so that they cannot stop them.
"""

import warnings
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from io import BytesIO
from pathlib import Path
from typing import BinaryIO

import numpy as np
from numpy.typing import NDArray
from pydicom.datadict import tag_for_keyword
from pydicom.dataset import Dataset, FileDataset, FileMetaDataset
from pydicom.encaps import get_frame
from pydicom.errors import InvalidDicomError
from pydicom.filebase import DicomBytesIO
from pydicom.filereader import read_dataset, read_partial, read_preamble
from pydicom.filewriter import write_file_meta_info
from pydicom.tag import BaseTag
from pydicom.uid import (
    UID,
    DeflatedExplicitVRLittleEndian,
    ExplicitVRLittleEndian,
    JPEG2000TransferSyntaxes,
    JPEGExtended12Bit,
    JPEGLSTransferSyntaxes,
    JPEGTransferSyntaxes,
    RLELossless,
)

from hmc_fast.data.codestream import read_codestream
from hmc_fast.data.decoder import DECODER
from hmc_fast.data.greyscale import greyscale
from hmc_fast.data.limits import check_file_size, check_size, max_file_bytes
from hmc_fast.data.rle import decode_rle
from hmc_fast.errors import UserError

PREAMBLE_BYTES = 128
MAGIC = b"DICM"
PHOTOMETRIC_INTERPRETATIONS = ("MONOCHROME1", "MONOCHROME2")
MAMMOGRAPHY_MODALITY = "MG"
FOR_PROCESSING = "FOR PROCESSING"
FOR_PROCESSING_CLASS = "1.2.840.10008.5.1.4.1.1.1.2.1"
MAMMOGRAPHY_SOP_CLASSES = ("1.2.840.10008.5.1.4.1.1.1.2", FOR_PROCESSING_CLASS)
STACK_SOP_CLASSES = {
    "1.2.840.10008.5.1.4.1.1.13.1.3": "a breast tomosynthesis",
    "1.2.840.10008.5.1.4.1.1.13.1.4": "a set of breast projections",
    "1.2.840.10008.5.1.4.1.1.13.1.5": "a set of breast projections",
}
RADIOGRAPHIC_MODALITIES = ("CR", "DX", "RG", "OT")
"""Modalities under which older mammograms travel; accepted where the body part is the breast."""
FUNCTIONAL_GROUPS = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
GROUP_TRANSFORMS = ("FrameVOILUTSequence", "PixelValueTransformationSequence")
_HEADER = (
    "SOPClassUID",
    "Modality",
    "BodyPartExamined",
    "PresentationIntentType",
    "SamplesPerPixel",
    "PhotometricInterpretation",
    "NumberOfFrames",
    "Rows",
    "Columns",
    "BitsAllocated",
    "BitsStored",
    "HighBit",
    "PixelRepresentation",
    "PixelPaddingValue",
    "PixelPaddingRangeLimit",
    "PresentationLUTShape",
    "RescaleSlope",
    "RescaleIntercept",
    "ModalityLUTSequence",
    "VOILUTSequence",
    "VOILUTFunction",
    "WindowCenter",
    "WindowWidth",
    *FUNCTIONAL_GROUPS,
)
_TAGS = [BaseTag(tag) for name in _HEADER if (tag := tag_for_keyword(name)) is not None]
_PIXELS = BaseTag(0x7FE00010)
CODECS = {
    **dict.fromkeys(JPEGTransferSyntaxes, "jpeg"),
    **dict.fromkeys(JPEGLSTransferSyntaxes, "jpeg-ls"),
    **dict.fromkeys(JPEG2000TransferSyntaxes, "jpeg-2000"),
}
"""The codestream of each transfer syntax that is decoded in the child process."""


def is_dicom(path: Path) -> bool:
    """True for a file with DICOM's preamble, or one named ``.dcm``; a pipe is not opened."""
    if path.exists() and not path.is_file():
        return False
    with path.open("rb") as file:
        file.seek(PREAMBLE_BYTES)
        return file.read(len(MAGIC)) == MAGIC or path.suffix.lower() == ".dcm"


def read_dicom(path: Path, *, allow_raw: bool = False) -> NDArray[np.float32]:
    """Greyscale pixels ``[H, W]`` in 0…1, bright tissue on a dark ground.

    Raises :class:`UserError` where the file is damaged, holds no single greyscale picture or no
    mammogram, or one that is for processing, unless ``allow_raw``.
    """
    with _damage_of(path), path.open("rb") as file:
        plain = _inflated(path, file)
        _check_header(path, _parse(plain, pixels=False), allow_raw=allow_raw)
        check_file_size(path)
        dataset = _parse(plain, pixels=True)
        if not dataset.get("PixelData"):
            raise UserError(f"{path}: has no pixels (no PixelData element)")
        return greyscale(_stored_pixels(path, dataset), dataset)


def dicom_header(path: Path) -> tuple[int, int, int]:
    """Rows, columns and bits stored, by the header; raises as :func:`read_dicom`."""
    with _damage_of(path), path.open("rb") as file:
        header = _parse(_inflated(path, file), pixels=False)
        _check_header(path, header, allow_raw=True)
        return int(header.Rows), int(header.Columns), int(header.BitsStored)


@contextmanager
def _damage_of(path: Path) -> Iterator[None]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            yield
        except UserError:
            raise
        except InvalidDicomError:
            raise UserError(f"{path}: is not a DICOM file (no DICM marker)") from None
        except Exception as error:  # a damaged file can break parser and transforms anywhere
            raise UserError(f"{path}: is damaged ({_summary(error)})") from None


def _summary(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:200]


def _inflated(path: Path, file: BinaryIO) -> BinaryIO:
    """The file itself, or its content where that is deflated, never more than a film has."""
    read_preamble(file, force=False)
    meta = read_dataset(file, False, True, stop_when=lambda tag, vr, length: tag.group != 2)
    if meta.get("TransferSyntaxUID") != DeflatedExplicitVRLittleEndian:
        return file
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    most = max_file_bytes()
    content = inflater.decompress(file.read(most), most)
    if not inflater.eof:
        raise UserError(f"{path}: is damaged, or larger than any single film when inflated")
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    plain = DicomBytesIO()
    plain.write(bytes(PREAMBLE_BYTES) + MAGIC)
    write_file_meta_info(plain, FileMetaDataset(meta), enforce_standard=False)
    return BytesIO(plain.getvalue() + content)


def _parse(file: BinaryIO, *, pixels: bool) -> FileDataset:
    """The attributes that decide about the pixels, and the pixels themselves where asked."""

    def stop(tag: BaseTag, vr: str | None, length: int) -> bool:
        return tag > _PIXELS or (tag == _PIXELS and not pixels)

    file.seek(0)
    return read_partial(file, stop, specific_tags=[*_TAGS, _PIXELS])


def _check_header(path: Path, header: Dataset, *, allow_raw: bool) -> None:
    """Raises :class:`UserError` for what is no single mammogram that can be looked at."""
    _check_is_mammogram(path, header)
    _check_is_single(path, header)
    intent = str(header.get("PresentationIntentType")).upper()
    raw = header.get("SOPClassUID") == FOR_PROCESSING_CLASS or FOR_PROCESSING in intent
    if raw and not allow_raw:
        raise UserError(
            f"{path}: is a raw detector image (for processing), another kind of input than the "
            "model learnt from; give the one for presentation"
        )
    photometric = _shown(header, "PhotometricInterpretation")
    if photometric not in PHOTOMETRIC_INTERPRETATIONS or header.get("SamplesPerPixel", 1) != 1:
        raise UserError(
            f"{path}: has photometric interpretation {photometric}, needs MONOCHROME1 or 2 of one "
            "sample"
        )
    if photometric == "MONOCHROME2" and header.get("PresentationLUTShape") == "INVERSE":
        raise UserError(
            f"{path}: is MONOCHROME2 with presentation LUT shape INVERSE, which contradict each "
            "other: black or white may be the tissue"
        )
    check_size(path, int(header.Rows), int(header.Columns))
    _check_bits(path, header)
    for name in FUNCTIONAL_GROUPS:
        for item in header.get(name) or ():
            if any(transform in item for transform in GROUP_TRANSFORMS):
                raise UserError(
                    f"{path}: has its window in functional groups, which are not read; convert it "
                    "to a Digital Mammography X-Ray Image"
                )


def _check_is_mammogram(path: Path, header: Dataset) -> None:
    modality, body_part = header.get("Modality", ""), header.get("BodyPartExamined", "")
    if not (
        modality == MAMMOGRAPHY_MODALITY
        or header.get("SOPClassUID") in (*MAMMOGRAPHY_SOP_CLASSES, *STACK_SOP_CLASSES)
        or (modality in RADIOGRAPHIC_MODALITIES and body_part == "BREAST")
    ):
        raise UserError(
            f"{path}: is no mammogram (modality {_shown(header, 'Modality')}, body part "
            f"{_shown(header, 'BodyPartExamined')}); MG is needed, or a radiograph of the BREAST"
        )


def _check_is_single(path: Path, header: Dataset) -> None:
    stack = STACK_SOP_CLASSES.get(str(header.get("SOPClassUID")))
    if stack is not None:
        raise UserError(f"{path}: is {stack}, give a two-dimensional mammogram")
    frames = header.get("NumberOfFrames")
    if frames is not None and int(frames) != 1:
        raise UserError(f"{path}: holds {int(frames)} frames, give one picture a file")


def _check_bits(path: Path, header: Dataset) -> None:
    allocated, stored = int(header.BitsAllocated), int(header.BitsStored)
    high = int(header.get("HighBit", stored - 1))
    if allocated not in (8, 16) or not 1 <= stored <= allocated or high != stored - 1:
        raise UserError(
            f"{path}: has {allocated} bits allocated, {stored} stored, the highest {high}; needs 8 "
            "or 16 allocated and the stored ones at their low end"
        )
    if header.get("PixelRepresentation", 0) not in (0, 1):
        raise UserError(f"{path}: has pixel representation {header.PixelRepresentation}")


def _shown(header: Dataset, name: str) -> str:
    return str(header.get(name) or "absent")[:40]


def _stored_pixels(path: Path, dataset: FileDataset) -> NDArray[np.integer]:
    """Stored values ``[H, W]``, signed where the data set says so."""
    syntax = dataset.file_meta.get("TransferSyntaxUID")
    try:
        if syntax is None:
            raise ValueError("the file does not say how they are encoded")
        stored = _encapsulated(dataset, syntax) if syntax.is_encapsulated else _plain(dataset)
    except Exception as error:  # decoders raise whatever their C libraries do
        name = syntax.name if syntax else "no transfer syntax"
        raise UserError(
            f"{path}: its pixels cannot be decoded ({name}: {_summary(error)})"
        ) from None
    if dataset.get("PixelRepresentation", 0) == 0:
        return stored
    unused = 8 * stored.itemsize - int(dataset.BitsStored)
    return (stored << unused).view(f"i{stored.itemsize}") >> unused


def _plain(dataset: FileDataset) -> NDArray[np.integer]:
    """Raises ``ValueError`` where there are more bytes than pixels, beyond what padding may be.

    pydicom would take them for frames, and a side that the header makes too small shears the film.
    """
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    sample_bytes = int(dataset.BitsAllocated) // 8
    more = len(dataset.PixelData) - rows * columns * sample_bytes
    if more >= min(rows, columns) * sample_bytes:
        raise ValueError(f"{more} bytes more than {rows}x{columns} pixels")
    return dataset.pixel_array


def _encapsulated(dataset: FileDataset, syntax: UID) -> NDArray[np.integer]:
    rows, columns = int(dataset.Rows), int(dataset.Columns)
    frame = get_frame(dataset.PixelData, 0, number_of_frames=1)
    if syntax == RLELossless:
        return decode_rle(frame, rows, columns, int(dataset.BitsAllocated) // 8)
    if syntax not in CODECS:
        raise ValueError("it is not supported")
    codestream = read_codestream(frame)
    if codestream.codec != CODECS[syntax]:
        raise ValueError(f"the codestream is {codestream.codec}, not {CODECS[syntax]}")
    if (codestream.rows, codestream.columns, codestream.components) != (rows, columns, 1):
        raise ValueError(
            f"the codestream has {codestream.rows}x{codestream.columns} pixels of "
            f"{codestream.components} components, the header {rows}x{columns} of 1"
        )
    if not 2 <= codestream.bits <= int(dataset.BitsAllocated):
        raise ValueError(f"the codestream has {codestream.bits} bits, more than allocated")
    if codestream.signed and dataset.get("PixelRepresentation", 0) == 0:
        raise ValueError("the codestream has signed values, the header unsigned ones")
    if (syntax == JPEGExtended12Bit and codestream.bits != 8) or (
        syntax in JPEGLSTransferSyntaxes and codestream.bits in (6, 7)
    ):
        raise ValueError(f"GDCM does not decode {codestream.bits} bits of it")
    return DECODER.decode(frame, codestream, str(syntax))
