"""The MIAS reader on the real distribution and on damaged ones."""

import codecs
import shutil
from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hmc_fast import UserError
from hmc_fast.data import TASKS, read_films, read_mias, read_pixels
from hmc_fast.data.mias import missing_films, patient_of

HEADER = "MIAS\n1st column: MIAS database reference number.\n\n"


def folder_with(tmp_path: Path, rows: str, *films: str) -> Path:
    (tmp_path / "Info.txt").write_text(HEADER + rows, encoding="latin-1")
    for number, film in enumerate(films, start=1):
        pixels = np.zeros((64, 64), np.uint8)
        pixels[0, 0] = number
        Image.fromarray(pixels).save(tmp_path / film)
    return tmp_path


def test_rows_as_distributed(tmp_path: Path) -> None:
    rows = (
        "mdb001 G CIRC B 35 42 197\nmdb002 G NORM \nmdb144 F MISC B 23 9 29\n"
        "mdb144 F MISC M 31 54 27\nmdb059 F CIRC B\nmdb216 D CALC M *NOTE 3* \n"
    )
    films = [f"mdb{n:03d}.pgm" for n in (1, 2, 59, 144)]
    films = {c.film_id: c for c in read_mias(folder_with(tmp_path, rows, *films, "mdb216.png"))}
    assert films["mdb001"].findings[0].radius == 197
    assert films["mdb002"].severity == "normal"
    assert films["mdb144"].severity == "malignant"
    assert len(films["mdb144"].findings) == 2
    assert films["mdb059"].findings[0].x is None
    assert films["mdb216"].severity == "malignant"
    assert films["mdb001"].patient_id == films["mdb002"].patient_id
    assert films["mdb002"].tissue == "fatty-glandular"
    assert (films["mdb144"].tissue, films["mdb216"].tissue) == ("fatty", "dense-glandular")


def test_films_2k_minus_1_and_2k_are_one_patient() -> None:
    assert patient_of("mdb001") == patient_of("mdb002") != patient_of("mdb003")
    assert patient_of("mdb321") == patient_of("mdb322") == "p160"


@pytest.mark.parametrize(
    ("rows", "films", "message"),
    [
        ("mdb001 X NORM\n", ["mdb001.pgm"], "line 4: unknown tissue code 'X'"),
        ("mdb001 G LUMP B 1 2 3\n", ["mdb001.pgm"], "line 4: unknown class code 'LUMP'"),
        ("mdb001 G CIRC Q 1 2 3\n", ["mdb001.pgm"], "line 4: unknown severity 'Q'"),
        ("mdb001 G CIRC B 1 2\n", ["mdb001.pgm"], "line 4: x, y and radius must be three"),
        ("mdb001 G\n", ["mdb001.pgm"], "line 4: tissue or class is missing"),
        ("mdb001 G NORM\nmdb002 G NORM\n", ["mdb001.pgm"], "line 5: mdb002 has a row but no film"),
        ("mdb001 G NORM\n", ["mdb001.pgm", "mdb002.pgm"], "the film has no row"),
        ("mdb001 G NORM\n", ["mdb001.pgm", "mdb001.png"], "film mdb001 is there twice"),
        ("", [], "holds no mdbNNN.pgm"),
        (
            "mdb001 G NORM\nmdb001 G CIRC B 5 4 1\n",
            ["mdb001.pgm"],
            "line 5: a second row of mdb001, one of them NORM",
        ),
        (
            "mdb001 G CIRC B 5 4 1\nmdb001 G NORM\n",
            ["mdb001.pgm"],
            "line 5: a second row of mdb001, one of them NORM",
        ),
        ("mdb001 G NORM B 5 4 1\n", ["mdb001.pgm"], "line 4: a finding behind NORM"),
        (
            "mdb001 G CIRC B 5 4 1\nmdb001 F CIRC B 5 4 1\n",
            ["mdb001.pgm"],
            "line 5: mdb001 had the tissue fatty-glandular in line 4",
        ),
        (
            "mdb001 G CIRC B 64 4 1\n",
            ["mdb001.pgm"],
            "the circle of mdb001 at 64, 4 with radius 1 is empty or outside of its 64x64 pixels",
        ),
        ("mdb001 G CIRC B 5 64 1\n", ["mdb001.pgm"], "outside of its 64x64 pixels"),
        ("mdb001 G CIRC B 5 4 0\n", ["mdb001.pgm"], "is empty or outside"),
        ("mdb001 G CIRC B 5 4 \u00b2\n", ["mdb001.pgm"], "x, y and radius must be three"),
    ],
)
def test_bad_folders(
    tmp_path: Path,
    rows: str,
    films: list[str],
    message: str,
    fails: Callable[..., str],
) -> None:
    folder = folder_with(tmp_path, rows, *films)
    with pytest.raises(UserError, match=message):
        read_mias(folder)
    out = tmp_path / "study"
    assert message in fails("cv", "--data", folder, "--out", out, "--model", "resnet18")


def test_a_byte_order_mark_hides_no_row(tmp_path: Path) -> None:
    rows = "mdb001 G NORM\nmdb002 F NORM\n"
    folder = folder_with(tmp_path, "", "mdb001.pgm", "mdb002.pgm")
    (folder / "Info.txt").write_bytes(codecs.BOM_UTF8 + rows.encode())
    assert [film.tissue for film in read_mias(folder)] == ["fatty-glandular", "fatty"]
    (folder / "Info.txt").write_text(rows, encoding="utf-16")
    with pytest.raises(UserError, match="Info.txt: is UTF-16; save it as plain text"):
        read_mias(folder)


def test_a_subset_is_read_where_it_is_allowed(tmp_path: Path) -> None:
    rows = "mdb001 G NORM\nmdb002 G CIRC B 900 900 9\nmdb003 F NORM\n"
    folder = folder_with(tmp_path, rows, "mdb001.pgm")
    with pytest.raises(UserError, match="mdb002 has a row but no film .*--allow-missing"):
        read_films(folder)
    assert [film.film_id for film in read_films(folder, allow_missing=True)] == ["mdb001"]
    assert missing_films(folder) == 2
    Image.fromarray(np.zeros((64, 64), np.uint8)).save(tmp_path / "mdb004.pgm")
    with pytest.raises(UserError, match="mdb004.pgm: the film has no row"):
        read_films(folder, allow_missing=True)


def test_no_folder_and_no_info(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="no such folder"):
        read_mias(tmp_path / "none")
    with pytest.raises(UserError, match="has no Info.txt"):
        read_mias(tmp_path)


def test_one_class_only(tmp_path: Path, fails: Callable[..., str]) -> None:
    rows = "".join(f"mdb{n:03d} G NORM\n" for n in range(1, 9))
    folder = folder_with(tmp_path, rows, *(f"mdb{n:03d}.pgm" for n in range(1, 9)))
    line = fails("cv", "--data", folder, "--out", tmp_path / "s", "--model", "resnet18")
    assert "needs films of at least two of rest, malignant; the data holds only rest" in line


@pytest.mark.real_data
def test_the_real_films(real_data: Path, tmp_path: Path) -> None:
    films = read_mias(real_data / "mias")
    assert len(films) == 258
    assert len({film.patient_id for film in films}) == 129
    assert Counter(film.severity for film in films) == {
        "normal": 165,
        "benign": 51,
        "malignant": 42,
    }
    assert {t: len(TASKS[t].select(films)[0]) for t in TASKS}["benign_malignant"] == 93
    pgm = real_data / "mias" / "mdb001.pgm"
    film = read_pixels(pgm)
    header, pixels = pgm.read_bytes().split(b"\n255\n", 1)
    assert header == b"P5\n1024 1024"
    np.testing.assert_array_equal(
        film, np.frombuffer(pixels, np.uint8).reshape(1024, 1024).astype(np.float32) / 255
    )
    Image.open(pgm).save(tmp_path / "mdb001.png")
    np.testing.assert_array_equal(read_pixels(tmp_path / "mdb001.png"), film)
    shutil.copy(real_data / "mias" / "Info.txt", tmp_path)
    with pytest.raises(UserError, match="has a row but no film"):
        read_mias(tmp_path)
