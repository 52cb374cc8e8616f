"""``explain`` and ``localise`` as their users run them."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from hmc_fast.cli.app import run
from hmc_fast.evaluation.localisation import read_localisation


def film(folder: Path, number: int) -> str:
    return str(folder / f"mdb{number:03d}.pgm")


def test_explain_writes_pictures_a_page_and_a_summary(
    checkpoint: Path,
    phantom_folder: Path,
    phantoms: list,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    films = [str(phantoms[0].path), str(next(c for c in phantoms if c.findings).path)]
    out = tmp_path / "out"
    arguments = ["explain", *films, "--checkpoint", str(checkpoint), "--method", "all", "--maps"]
    assert run([*arguments, "--score-channels", "2", "--out", str(out), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result == json.loads((out / "explanations.json").read_text())
    stems = [Path(name).stem for name in films]
    assert [f["film"] for f in result["films"]] == stems
    assert [f["annotated"] for f in result["films"]] == [False, True]
    for explained in result["films"]:
        assert sum(explained["scale"]["film_shares"].values()) == pytest.approx(1)
    expected = {f"{stem}{suffix}" for stem in stems for suffix in (".png", ".npz")}
    expected |= {"index.html", "contact_sheet.png", "explanations.json", "options.yaml"}
    assert {path.name for path in out.iterdir()} == expected
    with np.load(out / f"{stems[0]}.npz") as maps:
        assert set(maps) == {"gradcam", "gradcam++", "scorecam", "scale"}
        np.testing.assert_allclose(maps["scale"].sum(0), 1, atol=1e-6)
    assert "Score-CAM on the 2 channels" in (out / "index.html").read_text()


def test_films_of_one_name_and_films_without_annotations(
    checkpoint: Path, phantom_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for name in ("a", "b"):
        (tmp_path / name).mkdir()
        shutil.copy(film(phantom_folder, 5), tmp_path / name)
    films = [film(tmp_path / name, 5) for name in ("a", "b")]
    out = tmp_path / "out"
    arguments = ["explain", *films, "--checkpoint", str(checkpoint), "--out", str(out)]
    assert run(arguments) == 0
    assert "drawn, no annotation" in capsys.readouterr().out
    assert (out / "001-mdb005.png").is_file()
    assert (out / "002-mdb005.png").is_file()
    info = str(phantom_folder / "Info.txt")
    assert run([*arguments, "--annotations", info, "--json"]) == 0
    assert all(f["annotated"] for f in json.loads(capsys.readouterr().out)["films"])


def test_no_picture_replaces_a_film_or_another_picture(
    checkpoint: Path, phantom_folder: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    names = ("a.png", "contact_sheet.png", "002-contact_sheet.png")
    for number, name in enumerate(names, start=1):
        Image.open(film(phantom_folder, number)).save(tmp_path / name)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    explain = ("explain", tmp_path / "a.png", "--checkpoint", checkpoint, "--out")
    assert "which is not overwritten" in fails(*explain, tmp_path)
    (tmp_path / "link").mkdir()
    (tmp_path / "link" / "a.png").hardlink_to(tmp_path / "a.png")
    assert "which is not overwritten" in fails(*explain, tmp_path / "link")
    assert {p.name: p.read_bytes() for p in tmp_path.iterdir() if p.is_file()} == before
    pgm = film(phantom_folder, 1)
    beside = ("explain", pgm, "--checkpoint", checkpoint, "--out", phantom_folder)
    assert "holds the films; name a folder for the pictures" in fails(*beside)
    assert not list(phantom_folder.glob("*.png"))
    out = tmp_path / "out"
    films = [str(tmp_path / name) for name in (*names, "a.png")]
    assert run(["explain", *films, *map(str, explain[2:]), str(out)]) == 0
    assert sorted(path.name for path in out.glob("*.png")) == [
        "002-contact_sheet.png",
        "003-002-contact_sheet.png",
        "a.png",
        "contact_sheet.png",
    ]


def test_a_film_whose_name_is_no_text_is_explained(
    checkpoint: Path, phantom_folder: Path, tmp_path: Path
) -> None:
    odd = tmp_path / os.fsdecode(b"o\xffd.pgm")
    shutil.copy(film(phantom_folder, 1), odd)
    out = tmp_path / os.fsdecode(b"out\xff")
    assert run(["explain", str(odd), "--checkpoint", str(checkpoint), "--out", str(out)]) == 0
    assert "o\\udcffd" in (out / "index.html").read_text()
    assert len(list(out.glob("*.png"))) == 1


def test_localise_writes_a_file_for_each_model(
    checkpoint: Path, phantom_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["localise", str(checkpoint), "--data", str(phantom_folder), "--films", "2"]
    arguments += ["--method", "gradcam", "--steps", "2", "--sanity-films", "1"]
    assert run([*arguments, "--out", str(tmp_path)]) == 0
    assert "2 annotated films" in capsys.readouterr().out
    result = read_localisation(tmp_path / "hmc_net_resnet18" / "localisation.json")
    assert result["methods"]["gradcam"]["films"] == 2
    assert result["settings"]["score_channels"] == 64


def test_bad_input_is_one_line(
    checkpoint: Path, phantom_folder: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    out = tmp_path / "out"
    explain = ("explain", film(phantom_folder, 1), "--checkpoint", checkpoint, "--out", out)
    assert "is no feature map of hmc_net_resnet18" in fails(*explain, "--layer", "layer9")
    assert "unknown method 'lime'" in fails(*explain, "--method", "lime")
    assert "unknown class 'cancer'" in fails(*explain, "--class", "cancer")
    assert "channels is 0" in fails(*explain, "--score-channels", "0", "--method", "scorecam")
    assert "cannot be read" in fails(*explain, "--annotations", tmp_path / "none.txt")
    assert "no such file" in fails("explain", tmp_path / "x.pgm", *explain[2:])
    assert "cannot run this call" in fails(*explain, "--backend", "triton")
    assert not list(out.glob("*"))
    (tmp_path / "file").write_text("")
    assert "cannot be used as a folder" in fails(*explain[:-1], tmp_path / "file" / "x")
    localise = ("localise", checkpoint, "--data", phantom_folder, "--out", out)
    assert "steps: 1 is too few" in fails(*localise, "--steps", "1")
    assert "no such file" in fails("localise", tmp_path / "no.safetensors", *localise[2:])


def test_a_study_reports_how_good_its_maps_are(
    phantom_folder: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    study, data = tmp_path / "study", str(phantom_folder)
    settings = ["--folds", "2", "--epochs", "1", "--size", "32", "--batch-size", "16"]
    arguments = ["cv", "--data", data, "--out", str(study), "--model", "hmc_net_resnet18"]
    assert run([*arguments, *settings]) == 0
    checkpoints = [str(path) for path in sorted(study.glob("*/fold*/model.safetensors"))]
    assert len(checkpoints) == 2
    scored = ["localise", *checkpoints, "--data", data, "--out", str(study), "--films", "1"]
    assert run([*scored, "--steps", "2", "--sanity-films", "1", "--score-channels", "4"]) == 0
    assert run(["study", "report", str(study)]) == 0
    report = (study / "report" / "report.md").read_text()
    for method in ("gradcam", "gradcam++", "scorecam", "scale", "brightness, no model"):
        assert f"| hmc_net_resnet18 | {method} |" in report
    path = study / "hmc_net_resnet18" / "localisation.json"
    path.write_text(path.read_text().replace('"protocol": "patient"', '"protocol": "image"'))
    assert "is of other checkpoints than this study's" in fails("study", "report", study)
