"""Small DICOM mammograms for tests, plain and compressed."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.encaps import encapsulate
from pydicom.uid import ExplicitVRLittleEndian, generate_uid

STORED = np.arange(0, 4096, 13, dtype=np.uint16)[:315].reshape(-1, 5)


def mammogram(stored: NDArray[np.generic] = STORED, **attributes: object) -> Dataset:
    """A 12-bit mammogram of ``stored`` values; ``attributes`` replace or add."""
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


def lut(first: int, bits: int, entries: list[int]) -> Dataset:
    """An item of a lookup table's sequence."""
    item = Dataset()
    item.add_new(0x00283002, "US", [len(entries), first, bits])
    item.add_new(0x00283006, "US", entries)
    return item


def save(dataset: Dataset, path: Path) -> Path:
    dataset.save_as(path, enforce_file_format=True)
    return path


def with_frame(frame: bytes, syntax: str, dataset: Dataset | None = None) -> Dataset:
    """A mammogram whose pixels are ``frame``, a codestream in ``syntax``."""
    dataset = dataset or mammogram()
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encapsulate([frame])
    dataset["PixelData"].is_undefined_length = True
    return dataset


def codestream(stored: NDArray[np.generic], syntax: str, folder: Path) -> bytes:
    """``stored`` as GDCM compresses it."""
    import gdcm
    from pydicom import dcmread
    from pydicom.encaps import get_frame

    plain, compressed = save(mammogram(stored), folder / "plain.dcm"), folder / "compressed.dcm"
    reader = gdcm.ImageReader()
    reader.SetFileName(str(plain))
    assert reader.Read()
    change = gdcm.ImageChangeTransferSyntax()
    change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.GetTSType(syntax)))
    change.SetInput(reader.GetImage())
    assert change.Change()
    writer = gdcm.ImageWriter()
    writer.SetFile(reader.GetFile())
    writer.SetImage(change.GetOutput())
    writer.SetFileName(str(compressed))
    assert writer.Write()
    return get_frame(dcmread(compressed).PixelData, 0, number_of_frames=1)
