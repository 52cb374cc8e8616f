"""Films with known identities, and a model so small that its scores are known too."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, generate_uid
from torch import Tensor, nn

from hmc_fast.data import Preprocessing
from hmc_fast.inference import PreparedModel, prepare
from hmc_fast.prediction.engine import LocalEngine
from hmc_fast.prediction.job import PredictionJob
from hmc_fast.prediction.scores import Scorer
from hmc_fast.prediction.sources import find_sources

CLASSES = ("rest", "malignant")
PREPROCESSING = Preprocessing.square(32)


class Brightness(nn.Module):
    """Logits 0 and ``gain`` times the image's mean."""

    def __init__(self, gain: float = 1.0) -> None:
        super().__init__()
        self.gain = nn.Parameter(torch.tensor(gain))

    def forward(self, images: Tensor) -> Tensor:
        margin = self.gain * images.mean((1, 2, 3))
        return torch.stack([torch.zeros_like(margin), margin], 1)


@pytest.fixture
def model() -> PreparedModel:
    return prepare(Brightness())


@pytest.fixture
def scorer(model: PreparedModel) -> Scorer:
    return Scorer([model], PREPROCESSING, compare=False, batch_size=3)


@pytest.fixture
def job(scorer: Scorer) -> Callable[..., PredictionJob]:
    """A job for files or folders at a level."""

    def make(*named: Path, level: str = "film", scorer: Scorer = scorer) -> PredictionJob:
        scoring = {"checkpoints": ["a"], "bilateral": scorer.compare}
        return PredictionJob(find_sources(named), LocalEngine(scorer), scoring, CLASSES, level)

    return make


def write_picture(path: Path, seed: int) -> Path:
    pixels = np.random.default_rng(seed).integers(0, 256, (40, 30), dtype=np.uint8)
    Image.fromarray(pixels).save(path)
    return path


@pytest.fixture
def pictures(tmp_path: Path) -> Path:
    """A folder of 10 films of 5 patients by MIAS's names, and a text."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for number in range(1, 11):
        write_picture(folder / f"mdb{number:03d}.pgm", number)
    (folder / "Info.txt").write_text("no film")
    return folder


def write_dicom(path: Path, seed: int, **attributes: object) -> Path:
    stored = np.random.default_rng(seed).integers(0, 4096, (40, 30), dtype=np.uint16)
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = dataset.file_meta.MediaStorageSOPClassUID = "1.2.840.10008.5.1.4.1.1.1.2"
    dataset.SOPInstanceUID = attributes.pop("SOPInstanceUID", None) or generate_uid()
    dataset.file_meta.MediaStorageSOPInstanceUID = dataset.SOPInstanceUID
    dataset.Modality = "MG"
    dataset.PresentationIntentType = "FOR PRESENTATION"
    dataset.StudyInstanceUID, dataset.SeriesInstanceUID = "1.2.3", "1.2.3.4"
    dataset.StudyDate, dataset.StudyTime, dataset.StudyID = "20260101", "120000", "1"
    dataset.SeriesNumber, dataset.InstanceNumber = 1, seed
    dataset.PhotometricInterpretation = "MONOCHROME2"
    dataset.SamplesPerPixel = 1
    dataset.Rows, dataset.Columns = stored.shape
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelRepresentation = 0
    dataset.PixelData = stored.tobytes()
    for name, value in attributes.items():
        setattr(dataset, name, value)
    path.parent.mkdir(parents=True, exist_ok=True)
    dataset.save_as(path, enforce_file_format=True)
    return path


@pytest.fixture
def save_dicom() -> Callable[..., Path]:
    return write_dicom


@pytest.fixture
def archive(tmp_path: Path) -> Path:
    """A DICOM tree: both views of both breasts of patient A, one film of B, of unknown side."""
    folder = tmp_path / "archive"
    for seed, (side, view) in enumerate([("L", "CC"), ("L", "MLO"), ("R", "CC"), ("R", "MLO")]):
        write_dicom(
            folder / "a" / f"IM{seed}",
            seed,
            PatientID="A",
            ImageLaterality=side,
            ViewPosition=view,
        )
    write_dicom(folder / "b" / "IM9", 9, PatientID="B")
    return folder
