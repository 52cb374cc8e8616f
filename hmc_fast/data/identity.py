"""Whose breast a file shows: patient, side and view.

A DICOM file says so in its header, whatever its name; any other file by a MIAS number as its name.
"""

import warnings
from os.path import realpath
from pathlib import Path
from typing import NamedTuple

from pydicom import dcmread
from pydicom.dataset import Dataset

from hmc_fast.data.dicom import is_dicom
from hmc_fast.data.films import Film, Finding
from hmc_fast.data.mias import VIEW, is_film_id, patient_of, side_of

SIDES = ("L", "R")
CODED_VIEWS = {
    "399162004": "CC",
    "399368009": "MLO",
    "399260004": "ML",
    "399352003": "LM",
    "R-10242": "CC",
    "R-10226": "MLO",
    "R-10224": "ML",
    "R-10228": "LM",
}
"""View codes of PS3.16 CID 4014 (SNOMED CT and its older SRT codes)."""
_TAGS = [
    "PatientID",
    "IssuerOfPatientID",
    "StudyInstanceUID",
    "ImageLaterality",
    "Laterality",
    "FrameLaterality",
    "ViewPosition",
    "ViewCodeSequence",
]


class Identity(NamedTuple):
    """Each is None where the file does not say. ``side`` is ``"L"`` or ``"R"``.

    ``patient`` of a DICOM file is of one study: an anonymised archive may call all women alike.
    """

    patient: str | None
    side: str | None
    view: str | None


def identify(path: Path) -> Identity:
    """Patient, side and view of a file; nothing where its header cannot be read."""
    try:
        if is_dicom(path):
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")
                return _of_header(dcmread(path, stop_before_pixels=True, specific_tags=list(_TAGS)))
    except Exception:  # a damaged header can break the parser anywhere; reading pixels says how
        return Identity(None, None, None)
    if is_film_id(path.stem):
        return Identity(patient_of(path.stem), side_of(path.stem), VIEW)
    return Identity(None, None, None)


def film_of(path: Path, findings: tuple[Finding, ...] = ()) -> Film:
    """The film in a file; one whose patient is not known is a patient of its own."""
    identity = identify(path)
    return Film(
        path.stem,
        identity.patient or f"file {realpath(path)}",
        path,
        findings,
        side=identity.side,
        view=identity.view,
    )


def _of_header(header: Dataset) -> Identity:
    patient = str(header.get("PatientID") or "").strip()
    issuer = str(header.get("IssuerOfPatientID") or "").strip()
    side = str(header.get("ImageLaterality") or header.get("Laterality") or "").strip().upper()
    study = str(header.get("StudyInstanceUID") or "").strip()
    return Identity(
        " ".join(part for part in (issuer, patient, study) if part) if study else None,
        side if side in SIDES else None,
        _view(header),
    )


def _view(header: Dataset) -> str | None:
    position = str(header.get("ViewPosition") or "").strip().upper()
    if position:
        return position
    for code in header.get("ViewCodeSequence") or ():
        view = CODED_VIEWS.get(str(code.get("CodeValue", "")))
        if view is not None:
            return view
    return None
