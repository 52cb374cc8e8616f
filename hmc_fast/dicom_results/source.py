"""What results take over from a film's header: whose it is, its study, its side."""

import warnings
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from pydicom import config, dcmread
from pydicom.datadict import dictionary_VR, tag_for_keyword
from pydicom.dataset import Dataset
from pydicom.valuerep import validate_value

from hmc_fast.data.dicom import is_dicom
from hmc_fast.data.identity import SIDES
from hmc_fast.errors import UserError

NEEDED = (
    "SOPClassUID",
    "SOPInstanceUID",
    "StudyInstanceUID",
    "SeriesInstanceUID",
)
"""What a reference to the film is made of."""
KEYS = ("PatientID", "IssuerOfPatientID")
"""By these an archive tells patients apart: they are kept as they are, or the film is refused."""
TAKEN_OVER = (
    "PatientName",
    "PatientBirthDate",
    "PatientSex",
    "AccessionNumber",
    "ReferringPhysicianName",
    "StudyDate",
    "StudyTime",
    "StudyID",
    "StudyDescription",
)
"""Left empty where they are not valid, as an old header may have them."""
MODALITY = "Modality"
SEXES = ("M", "F", "O")
LARGEST_NUMBER = 2**31 - 1


@dataclass(frozen=True)
class SourceFilm:
    """A film that results refer to.

    ``header`` has valid values only. ``side`` is ``"L"``, ``"R"``, or empty where nobody says;
    ``orientation`` is the patient's along rows and columns, empty where nobody says.
    """

    header: Dataset
    side: str
    orientation: tuple[str, ...]
    number: int


def check_libraries() -> None:
    """Raises :class:`UserError` where what writes results is not installed."""
    for library in ("highdicom", "pynetdicom"):
        if find_spec(library) is None:
            raise UserError(f"DICOM results need {library}; pip install 'hmc-fast[dicom]'")


def check_is_dicom(path: Path) -> None:
    """Raises :class:`UserError` for a film that has no study which results could join."""
    try:
        if is_dicom(path):
            return
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    raise UserError(
        f"{path}: is no DICOM file, so there is no study that DICOM results could join; leave out "
        "--dicom-out, or give DICOM films"
    )


def read_source(path: Path) -> SourceFilm:
    """The header of a DICOM film.

    Raises :class:`UserError` where it is damaged, or lacks what a reference is made of.
    """
    names = [*NEEDED, *KEYS, *TAKEN_OVER, MODALITY]
    extra = ["SpecificCharacterSet", "ImageLaterality", "Laterality", "PatientOrientation"]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        try:
            given = dcmread(
                path, stop_before_pixels=True, specific_tags=[*names, *extra, "InstanceNumber"]
            )
            texts = {name: _text(given, name) for name in [*names, *extra[1:3]]}
            orientation = tuple(str(part) for part in given.get("PatientOrientation") or ())
        except Exception as error:  # a damaged header can break the parser anywhere
            raise UserError(f"{path}: its header is damaged ({type(error).__name__})") from None
        header = Dataset()
        # Whatever the film's characters are, results are written in UTF-8.
        header.SpecificCharacterSet = "ISO_IR 192"
        for name in NEEDED:
            if not texts[name] or not _valid(name, texts[name]):
                raise UserError(f"{path}: has no valid {name}, by which results refer to the film")
            setattr(header, name, texts[name])
        for name in KEYS:
            if not _valid(name, texts[name]):
                raise UserError(f"{path}: its {name} is not valid, so results would go astray")
            setattr(header, name, texts[name])
        for name in (*TAKEN_OVER, MODALITY):
            setattr(header, name, texts[name] if _valid(name, texts[name]) else "")
    if header.PatientSex not in SEXES:
        header.PatientSex = ""
    side = (texts["ImageLaterality"] or texts["Laterality"]).upper()
    return SourceFilm(header, side if side in SIDES else "", orientation, _number(given))


def _text(header: Dataset, name: str) -> str:
    return str(header.get(name) or "").strip(" \0")


def _valid(name: str, text: str) -> bool:
    tag = tag_for_keyword(name)
    assert tag is not None  # the names above are DICOM's
    try:
        validate_value(dictionary_VR(tag), text, config.RAISE)
    except ValueError:
        return False
    return "\\" not in text


def _number(header: Dataset) -> int:
    """The film's own number in its series; 1 where it has none."""
    try:
        number = int(header.get("InstanceNumber") or 1)
    except (TypeError, ValueError):
        return 1
    return number if 1 <= number <= LARGEST_NUMBER else 1
