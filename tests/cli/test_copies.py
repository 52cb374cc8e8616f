"""cv says which films look like copies of one film but are of different patients."""

import shutil
from pathlib import Path

import pytest
from PIL import Image, ImageOps

from hmc_fast.cli.app import run


def cross_validate(data: Path, out: Path) -> int:
    training = ["--folds", "2", "--size", "32", "--epochs", "1", "--batch-size", "18"]
    return run(["cv", "--data", str(data), "--out", str(out), "--model", "resnet18", *training])


def test_look_alikes_of_two_patients_are_named_once(
    phantom_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    data = tmp_path / "films"
    shutil.copytree(phantom_folder, data)
    ImageOps.mirror(Image.open(data / "mdb001.pgm")).save(data / "mdb009.pgm")
    assert cross_validate(data, tmp_path / "study") == 0
    told = " ".join(capfd.readouterr().err.split())
    assert "films mdb001 and mdb009 look like copies of one film" in told
    assert cross_validate(data, tmp_path / "study") == 0
    assert "look like copies" not in capfd.readouterr().err


def test_different_films_are_not_named(
    phantom_folder: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    assert cross_validate(phantom_folder, tmp_path / "study") == 0
    assert "look like copies" not in capfd.readouterr().err
