"""The probe, near-duplicates and split checks."""

import csv
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hmc_fast.cli.app import run
from hmc_fast.data import Film, FilmCache, FilmDataset, Finding, Preprocessing, read_mias
from hmc_fast.data.folds import PROTOCOLS
from hmc_fast.study.leakage import probe_features, run_probe
from hmc_fast.study.near_duplicates import SAME_FILM, SIDE, near_duplicates
from hmc_fast.study.split_check import check_split


def films(films: list[Film], **changes: float) -> list[np.ndarray]:
    dataset = FilmDataset(
        [replace(film, **changes) for film in films],
        [0] * len(films),
        FilmCache(Preprocessing.square(SIDE)),
    )
    return [dataset.film(i)[0].numpy() for i in range(len(films))]


def split_file(path: Path, rows: list[tuple[str, ...]], header: str = "film,split") -> Path:
    path.write_text("\n".join([header, *(",".join(row) for row in rows)]) + "\n")
    return path


def test_the_features_barely_move_when_a_film_turns(phantoms: list[Film]) -> None:
    upright, turned = films(phantoms[:6]), films(phantoms[:6], rotation=24.0)
    pairs = zip(upright, turned, strict=True)
    same = [np.abs(probe_features(a) - probe_features(b)).mean() for a, b in pairs]
    other = [np.abs(probe_features(upright[0]) - probe_features(b)).mean() for b in upright[1:]]
    assert max(same) < min(other)


def test_the_probe_scores_only_where_copies_are_on_both_sides(phantoms: list[Film]) -> None:
    sick = np.random.default_rng(0).permutation(18) < 9
    findings = (Finding("MISC", "malignant"),)
    drawn = [
        replace(film, findings=findings if sick[number // 2] else ())
        for number, film in enumerate(phantoms)
    ]
    results = run_probe(drawn, "malignant", protocols=PROTOCOLS, fold_count=3, copies=8, seed=0)
    by_protocol = {result.protocol: result for result in results}
    assert by_protocol["augment-first"].accuracy > 0.9
    assert by_protocol["augment-first"].auc > 0.9
    assert by_protocol["patient"].auc < 0.75
    assert [result.copies for result in results] == [1, 1, 8]


@pytest.mark.systems
@pytest.mark.real_data
def test_on_real_films_the_leak_is_worth_everything(real_data: Path) -> None:
    films = read_mias(real_data / "mias")
    results = run_probe(films, "malignant", protocols=("patient",), fold_count=5, copies=45, seed=0)
    assert 0.5 < results[0].auc < 0.56
    few = films[:80]
    (leaking,) = run_probe(
        few, "malignant", protocols=("augment-first",), fold_count=5, copies=45, seed=0
    )
    assert leaking.accuracy == 1


@pytest.mark.parametrize("angle", [8.0, 17.3, 90.0, 211.0])
def test_turned_mirrored_and_darkened_copies_are_found(phantoms: list[Film], angle: float) -> None:
    one = films(phantoms[:5])
    turned = [film[:, ::-1] ** 1.3 * 0.8 for film in films(phantoms[:5], rotation=angle)]
    found = near_duplicates([*one, *turned], ["a"] * 5 + ["b"] * 5)
    assert {(pair.first, pair.second) for pair in found} == {(i, i + 5) for i in range(5)}
    assert not near_duplicates([*one, *turned], ["a"] * 10)


@pytest.mark.real_data
def test_real_films_are_told_apart_and_their_copies_recognised(real_data: Path) -> None:
    mias = read_mias(real_data / "mias")[:60]
    one, turned = films(mias), films(mias[:10], rotation=56.0)
    apart = near_duplicates(one, [str(i) for i in range(60)], threshold=0)
    assert apart[0].correlation < SAME_FILM - 0.03
    found = near_duplicates([*one, *turned], ["a"] * 60 + ["b"] * 10, threshold=0)
    assert {(pair.first, pair.second) for pair in found[:10]} == {(i, 60 + i) for i in range(10)}
    assert found[9].correlation > SAME_FILM + 0.03


def test_a_clean_split_and_one_with_a_patient_on_both_sides(
    phantom_folder: Path, phantoms: list[Film], tmp_path: Path
) -> None:
    rows = [(film.film_id, "train" if i < 24 else "test") for i, film in enumerate(phantoms)]
    clean = check_split(split_file(tmp_path / "a.csv", rows), phantom_folder, phantoms)
    assert not clean.leaks
    assert clean.films == {"train": 24, "test": 12}
    rows[0] = (rows[0][0], "test")
    shared = check_split(split_file(tmp_path / "b.csv", rows), phantom_folder, phantoms)
    assert shared.shared_patients == {"p000": ["test", "train"]}
    assert not shared.duplicates


def test_an_augmented_file_across_the_split_is_found_by_pixels_and_by_name(
    phantom_folder: Path, phantoms: list[Film], tmp_path: Path
) -> None:
    film = Image.open(phantoms[0].path)
    film.rotate(30, Image.Resampling.BILINEAR).save(tmp_path / "mdb001_rot30.png")
    film.transpose(Image.Transpose.FLIP_LEFT_RIGHT).save(tmp_path / "anonymous.png")
    rows = [("mdb001", "0"), ("mdb001_rot30.png", "1"), ("anonymous.png", "1"), ("mdb009", "1")]
    path = split_file(tmp_path / "split.csv", rows, header="File,Fold")
    report = check_split(path, phantom_folder, phantoms)
    assert {d.second for d in report.duplicates} == {"mdb001_rot30.png", "anonymous.png"}
    assert report.shared_patients == {"p000": ["0", "1"]}
    assert report.unknown_patients == 1


def test_the_command_prints_both_protocols(
    phantom_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["leakage-probe", "--data", str(phantom_folder), "--out", str(tmp_path)]
    arguments += ["--copies", "2", "--folds", "2", "--epochs", "1", "--size", "32", "--json"]
    assert run([*arguments, "--model", "resnet18"]) == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["protocol"] for row in rows] == [*PROTOCOLS, "patient", "augment-first"]
    assert [row["copies"] for row in rows] == [1, 1, 2, 2, 2]
    assert rows[-1]["what"] == "resnet18"
    for protocol in ("patient", "augment-first"):
        with (tmp_path / protocol / "folds.csv").open() as file:
            assert len(list(csv.DictReader(file))) == 2 * 36
    assert run([*arguments[:3], "--model", "none", *arguments[5:-1]]) == 0
    assert "What the split alone buys" in capsys.readouterr().out


def test_split_files_that_leak_or_are_wrong_end_in_one_line(
    phantom_folder: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    def check(rows: list[tuple[str, ...]], header: str = "film,split") -> str:
        path = split_file(tmp_path / "split.csv", rows, header)
        return fails("leakage-probe", "--data", phantom_folder, "--split", path)

    assert "leaks: 1 patients and 0 pairs" in check([("mdb001", "a"), ("mdb002", "b")])
    assert "all films are on one side" in check([("mdb001", "a"), ("mdb002", "a")])
    assert "row 2: film 'mdb999' is neither in" in check([("mdb001", "a"), ("mdb999", "b")])
    assert "row 1: has no value in a column named split or" in check([("mdb001", "a")], "film,x")
    assert "holds no film" in check([])
    missing = fails("leakage-probe", "--data", phantom_folder, "--split", tmp_path / "none.csv")
    assert "cannot be read (No such file" in missing
    ragged = [("mdb001", "a", "x"), ("mdb002", "b")]
    assert "line 2: has more or fewer cells than the header" in check(ragged)
