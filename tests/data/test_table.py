"""Films of any data set from a table: what is read, what is refused by line."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hmc_fast import UserError
from hmc_fast.cli.app import run
from hmc_fast.data import Film, Finding, read_films, read_mias
from hmc_fast.evaluation import read_predictions
from hmc_fast.training.train import PREDICTIONS_FILE

HEADER = "path,patient,label,side,view,kind,x,y,radius,left,top,right,bottom,tissue"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name in ("a", "b", "c"):
        Image.fromarray(np.full((40, 30), 9, np.uint8)).save(tmp_path / f"{name}.png")
    return tmp_path


def table(folder: Path, *rows: str, header: str = HEADER) -> list[Film]:
    path = folder / "films.csv"
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return read_films(path)


def test_rows_become_films_with_their_findings(folder: Path) -> None:
    first, second, third = table(
        folder,
        "a.png,p1,malignant,L,mlo,spic,10,5,4,,,,,dense",
        "b.png,p1,normal,right,MLO,,,,,,,,,",
        "a.png,p1,benign,l,MLO,,,,,20,10,26,30,",
        "c.png,p 2,malignant,,,,,,,,,,,",
    )
    assert first == Film(
        "a",
        "p1",
        folder / "a.png",
        (Finding("SPIC", "malignant", 10, 34, 4), Finding("MISC", "benign", 23, 19, 10)),
        tissue="dense",
        side="L",
        view="MLO",
    )
    assert first.severity == "malignant"
    assert (second.side, second.findings) == ("R", ())
    assert (third.patient_id, third.side, third.view) == ("p 2", None, None)
    assert third.findings == (Finding("MISC", "malignant"),)


def test_three_columns_are_enough_and_a_byte_order_mark_does_no_harm(folder: Path) -> None:
    (folder / "films.csv").write_bytes("\ufeffLabel, Path ,PATIENT\nbenign,a.png,7\n".encode())
    (film,) = read_films(folder / "films.csv")
    assert (film.film_id, film.patient_id, film.severity) == ("a", "7", "benign")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("x.png,p,normal,,,,,,,,,,,", r"line 2: .*x\.png: no such film"),
        ("a.png,,normal,,,,,,,,,,,", "line 2: has no patient"),
        ("a.png,p,cancer,,,,,,,,,,,", "line 2: label 'cancer' is none of normal, benign, malig"),
        ("a.png,p,normal,up,,,,,,,,,,", "line 2: side 'up' is neither L nor R"),
        ("a.png,p,normal,,,,1,2,3,,,,,", "line 2: a normal film has no lesion"),
        ("a.png,p,benign,,,,1,2,,,,,,", "line 2: a lesion needs x, y, radius, or none"),
        ("a.png,p,benign,,,,1,nan,3,,,,,", "line 2: 'nan' is no number"),
        ("a.png,p,benign,,,,1,2,0,,,,,", "line 2: radius 0 is not positive"),
        ("a.png,p,benign,,,,35,2,3,,,,,", "line 2: the lesion at 35, 2 lies outside of 30x40"),
        ("a.png,p,benign,,,,,,,9,9,9,12,", "line 2: the box is empty"),
        ("a.png,p,benign,,,,1,2,3,1,1,2,2,", "line 2: has a circle and a box"),
        ("a.png,p,benign", "line 2: has more or fewer cells than the header"),
        ("a.png,p,normal,,,,,,,,,,,\na.png,q,normal,,,,,,,,,,,", "line 3: .* another patient"),
        ("a.png,p,normal,,,,,,,,,,,\na.png,p,benign,,,,,,,,,,,", "line 3: .* is normal and has"),
        ("", "holds no film"),
    ],
)
def test_a_bad_row_is_named_by_its_line(folder: Path, row: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        table(folder, *row.split("\n"))


@pytest.mark.parametrize(
    ("header", "message"),
    [
        ("path,label", "lacks the column patient"),
        ("path,patient,label,age", "unknown or doubled column 'age'"),
        ("path,patient,label,path", "unknown or doubled column 'path'"),
    ],
)
def test_a_bad_header_is_named(folder: Path, header: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        table(folder, header=header)


def test_two_files_of_one_name_and_what_is_no_table_are_refused(folder: Path) -> None:
    (folder / "deeper").mkdir()
    (folder / "deeper" / "a.png").write_bytes((folder / "a.png").read_bytes())
    with pytest.raises(UserError, match="line 3: a film of the name a is there already"):
        table(folder, "a.png,p,normal", "deeper/a.png,q,normal", header="path,patient,label")
    (folder / "films.csv").write_bytes(b"path,patient,label\n\xff\xfe,p,normal\n")
    with pytest.raises(UserError, match="is no CSV table in UTF-8"):
        read_films(folder / "films.csv")
    with pytest.raises(UserError, match="cannot be read"):
        read_films(folder / "missing.csv")
    with pytest.raises(UserError, match="line 2: .*cannot be read .File name too long"):
        table(folder, f"{'a' * 400},p,normal", header="path,patient,label")


def as_table(films: list[Film], path: Path) -> None:
    """A MIAS folder's films as rows of a table."""
    rows = ["path,patient,label,side,view,kind,x,y,radius,tissue,collection"]
    for film in films:
        for finding in film.findings or (None,):
            place = ",,,"
            if finding is not None and finding.y is not None:
                height = Image.open(film.path).height
                place = f"{finding.kind},{finding.x},{height - 1 - finding.y},{finding.radius}"
            label = finding.severity if finding else "normal"
            rows.append(
                f"{film.path},{film.patient_id},{label},{film.side},{film.view},{place},"
                f'{film.tissue},"{film.collection}"'
            )
    path.write_text("\n".join(rows) + "\n")


def test_a_table_of_a_mias_folder_is_that_folder(phantoms: list[Film], tmp_path: Path) -> None:
    as_table(phantoms, tmp_path / "films.csv")
    assert read_films(tmp_path / "films.csv") == phantoms


def test_commands_take_a_table(
    phantoms: list[Film], tmp_path: Path, fails: Callable[..., str]
) -> None:
    as_table(phantoms, tmp_path / "films.csv")
    out = tmp_path / "run"
    arguments = ["--data", str(tmp_path / "films.csv"), "--model", "resnet18", "--size", "32"]
    arguments += ["--epochs", "1", "--folds", "3"]
    assert run(["train", *arguments, "--out", str(out)]) == 0
    assert len(read_predictions(out / PREDICTIONS_FILE).films) == len(phantoms) // 3
    with (tmp_path / "films.csv").open("a") as file:
        file.write("missing.png,p,normal,,,,,,,,\n")
    said = fails("train", *arguments, "--out", tmp_path / "other")
    assert f"line {len(phantoms) + 2}" in said
    assert "no such film" in said


@pytest.mark.real_data
def test_a_table_of_real_films_is_their_folder(real_data: Path, tmp_path: Path) -> None:
    films = read_mias(real_data / "mias")[:40]
    as_table(films, tmp_path / "films.csv")
    assert read_films(tmp_path / "films.csv") == films
