"""Phantoms as DICOM mammograms whose headers are complete, and a checkpoint to score them by."""

from pathlib import Path

import numpy as np
import torch
from dicom_files import mammogram, save
from pydicom.dataset import Dataset

from hmc_fast import create_model
from hmc_fast.checkpoint import CheckpointMetadata, OperatingPoint, save_checkpoint
from hmc_fast.data import Preprocessing
from hmc_fast.data.phantom import draw_phantom

NAME, PATIENT = "Mäuse^Ärztin", "SECRET-4711"
"""What no log may hold."""
STUDY = "1.2.826.0.1.3680043.8.498.4711"


def phantom(seed: int, size: int = 96, **attributes: object) -> Dataset:
    """A right breast with a malignant lesion; ``attributes`` replace or add."""
    pixels, _ = draw_phantom(np.random.default_rng(seed), size, "M", mirrored=True)
    given: dict[str, object] = {
        "SpecificCharacterSet": "ISO_IR 100",
        "PatientName": NAME,
        "PatientID": PATIENT,
        "PatientBirthDate": "19500101",
        "PatientSex": "F",
        "StudyInstanceUID": STUDY,
        "SeriesInstanceUID": f"{STUDY}.1",
        "StudyDate": "20260101",
        "StudyTime": "120000",
        "StudyID": "1",
        "AccessionNumber": "A1",
        "ReferringPhysicianName": "",
        "ImageLaterality": "R",
        "ViewPosition": "MLO",
        "PatientOrientation": ["P", "F"],
        "PresentationIntentType": "FOR PRESENTATION",
        "InstanceNumber": seed,
    }
    return mammogram((pixels * 4095).astype(np.uint16), **(given | attributes))


def phantom_file(path: Path, seed: int, size: int = 96, **attributes: object) -> Path:
    return save(phantom(seed, size, **attributes), path)


def small_checkpoint(path: Path, preprocessing: Preprocessing | None = None) -> Path:
    """An untrained model with an operating point."""
    torch.manual_seed(0)
    model = create_model("hmc_net_resnet18")
    metadata = CheckpointMetadata(
        model.config,
        "malignant",
        ("rest", "malignant"),
        preprocessing or Preprocessing.square(64),
        {},
        {},
        operating_point=OperatingPoint(0.125, 0.9, 0.91, 0.5, 100),
    )
    save_checkpoint(path, model, metadata)
    return path
