"""Whose breast a file shows, and which files are compared."""

from pathlib import Path

import numpy as np
import pytest
from dicom_files import mammogram, save
from PIL import Image

from hmc_fast.data.identity import Identity, film_of, identify
from hmc_fast.evaluation.bilateral import compare_films


def breast(folder: Path, name: str, side: str, **attributes: object) -> Path:
    values = {"PatientID": "ANON", "ViewPosition": "MLO", "StudyInstanceUID": "1.2.3", **attributes}
    return save(mammogram(ImageLaterality=side, **values), folder / name)


def test_the_header_wins_over_the_name(tmp_path: Path) -> None:
    assert identify(breast(tmp_path, "mdb001.dcm", "L")) == Identity("ANON 1.2.3", "L", "MLO")
    Image.fromarray(np.zeros((8, 8), np.uint8)).save(tmp_path / "mdb001.png")
    assert identify(tmp_path / "mdb001.png") == Identity("p000", "R", "MLO")
    (tmp_path / "mdb002.dcm").write_bytes(b"damaged")
    assert identify(tmp_path / "mdb002.dcm") == Identity(None, None, None)


@pytest.mark.parametrize(
    ("attributes", "compared"),
    [
        ({}, True),
        ({"PatientID": ""}, True),
        ({"StudyInstanceUID": "1.2.4"}, False),
        ({"PatientID": "OTHER"}, False),
        ({"StudyInstanceUID": ""}, False),
        ({"ViewPosition": "CC"}, False),
    ],
)
def test_breasts_of_one_patient_and_study_are_compared(
    tmp_path: Path, attributes: dict[str, object], compared: bool
) -> None:
    shared = attributes if attributes == {"PatientID": ""} else {}
    left = breast(tmp_path, "left.dcm", "L", **shared)
    right = breast(tmp_path, "right.dcm", "R", **attributes)
    result = compare_films(np.array([1.0, 0.5]), [film_of(left), film_of(right)])
    assert result.compared.tolist() == [compared, compared]


def test_files_that_name_no_study_are_patients_of_their_own(tmp_path: Path) -> None:
    films = [
        film_of(breast(tmp_path, f"{side}.dcm", side, StudyInstanceUID="")) for side in ("L", "R")
    ]
    assert films[0].patient_id != films[1].patient_id
