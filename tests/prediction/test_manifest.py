"""Who each film is, which are there twice, and which belong into one chunk."""

import hashlib
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pydicom
import pytest

from hmc_fast import UserError
from hmc_fast.prediction import manifest as module
from hmc_fast.prediction.manifest import (
    MANIFEST_FILE,
    Manifest,
    frozen_manifest,
    make_manifest,
)
from hmc_fast.prediction.sources import find_sources

SCORING = {"checkpoints": ["a"], "precision": "fp32"}


def manifest_of(*named: Path) -> Manifest:
    return make_manifest(find_sources(named), SCORING)


def changed_copy(film: Path, name: str, change: Callable[[pydicom.Dataset], None]) -> Path:
    dataset = pydicom.dcmread(film)
    change(dataset)
    dataset.save_as(film.with_name(name))
    return film.with_name(name)


def test_a_film_is_known_by_its_uid_and_its_bytes(archive: Path, pictures: Path) -> None:
    film = archive / "a" / "IM1"
    entry, picture = manifest_of(film, pictures / "mdb003.pgm").entries
    assert entry.uid == pydicom.dcmread(film).SOPInstanceUID
    assert entry.sha256 == hashlib.sha256(film.read_bytes()).hexdigest()
    assert (entry.side, entry.view, entry.problem) == ("L", "MLO", "")
    assert (picture.uid, picture.side) == ("", "R")
    assert entry.film.side == "L"


def test_copies_are_scored_once(archive: Path) -> None:
    film = archive / "a" / "IM0"
    shutil.copy(film, archive / "a" / "IM0-again")
    renamed = changed_copy(film, "IM0-named", lambda d: setattr(d, "InstitutionName", "X"))
    problems = {Path(e.path).name: e.problem for e in manifest_of(archive).entries}
    assert problems["IM0"] == ""
    assert problems["IM0-again"] == f"is the same film as {film}"
    assert problems[renamed.name] == f"is the same film as {film}"


def test_one_uid_with_other_pixels_is_nobodys_score(archive: Path) -> None:
    film = archive / "a" / "IM0"

    def darken(dataset: pydicom.Dataset) -> None:
        dataset.PixelData = bytes(len(dataset.PixelData))

    changed_copy(film, "IM0-dark", darken)
    problems = {Path(e.path).name: e.problem for e in manifest_of(archive).entries}
    assert "which has other pixels" in problems["IM0"]
    assert f"is also that of {film}, which has other pixels" in problems["IM0-dark"]
    assert problems["IM1"] == ""


def test_patients_stay_whole_and_ids_say_what_is_in_a_chunk(
    pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "CHUNK_FILMS", 3)
    whole = manifest_of(pictures)
    assert [len(chunk.entries) for chunk in whole.chunks] == [4, 4, 2]
    assert [e for chunk in whole.chunks for e in chunk.entries] == list(whole.entries)
    again = manifest_of(pictures)
    assert [chunk.id for chunk in again.chunks] == [chunk.id for chunk in whole.chunks]
    other = make_manifest(find_sources([pictures]), {**SCORING, "precision": "bf16"})
    assert not {chunk.id for chunk in other.chunks} & {chunk.id for chunk in whole.chunks}
    shutil.copy(pictures / "mdb009.pgm", pictures / "mdb010.pgm")
    assert [chunk.id for chunk in manifest_of(pictures).chunks][:2] == [
        chunk.id for chunk in whole.chunks
    ][:2]
    assert manifest_of(pictures).chunks[2].id != whole.chunks[2].id


def test_a_frozen_manifest_stays_and_other_films_are_refused(
    pictures: Path, tmp_path: Path
) -> None:
    sources, folder = find_sources([pictures]), tmp_path / "parts"
    made = frozen_manifest(folder, sources, SCORING)
    seen: list[int] = []
    assert frozen_manifest(folder, sources, SCORING, lambda: seen.append(1)) == made
    assert not seen  # no film is opened again
    with pytest.raises(UserError, match="with other precision"):
        frozen_manifest(folder, sources, {**SCORING, "precision": "bf16"})
    with pytest.raises(UserError, match="mdb010.pgm is new, gone or changed"):
        frozen_manifest(folder, sources[:-1], SCORING)
    os.utime(pictures / "mdb002.pgm", ns=(1, 1))
    with pytest.raises(UserError, match="mdb002.pgm is new, gone or changed"):
        frozen_manifest(folder, sources, SCORING)


@pytest.mark.parametrize("damage", ["[]", '{"scoring": {}}', "{", "null"])
def test_a_damaged_manifest_is_one_line(pictures: Path, tmp_path: Path, damage: str) -> None:
    sources = find_sources([pictures])
    frozen_manifest(tmp_path, sources, SCORING)
    text = (tmp_path / MANIFEST_FILE).read_text()
    (tmp_path / MANIFEST_FILE).write_text(damage)
    with pytest.raises(UserError, match=MANIFEST_FILE):
        frozen_manifest(tmp_path, sources, SCORING)
    (tmp_path / MANIFEST_FILE).write_text(text.replace("mdb001", "mdb901"))
    with pytest.raises(UserError, match="is damaged"):
        frozen_manifest(tmp_path, sources, SCORING)


def test_a_film_that_cannot_be_opened_has_a_problem(pictures: Path) -> None:
    (pictures / "mdb011.pgm").mkdir()
    sources = [*find_sources([pictures]), *find_sources([pictures / "mdb001.pgm"])]
    gone = find_sources([pictures / "mdb010.pgm"])
    (pictures / "mdb010.pgm").unlink()
    entries = make_manifest([*sources[:2], *gone], SCORING).entries
    assert [entry.problem for entry in entries] == [
        "",
        "",
        "cannot be read (No such file or directory)",
    ]
