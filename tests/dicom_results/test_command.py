"""``explain --dicom-out`` as its users run it."""

from collections.abc import Callable
from pathlib import Path

import pytest
from dicom_phantoms import phantom_file, small_checkpoint
from highdicom.sr import srread
from PIL import Image

from hmc_fast.cli.app import run


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_checkpoint(tmp_path_factory.mktemp("checkpoint") / "model.safetensors")


def test_every_film_gets_a_report_and_an_overlay_of_each_map(
    checkpoint: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "in").mkdir()
    films = [str(phantom_file(tmp_path / "in" / f"{n}.dcm", n)) for n in (1, 2)]
    arguments = ["explain", *films, "--checkpoint", str(checkpoint), "--out", str(tmp_path / "out")]
    arguments += ["--method", "gradcam", "--method", "gradcam++", "--method", "scale"]
    out = tmp_path / "dicom"
    assert run([*arguments, "--dicom-out", str(out)]) == 0
    kinds = ("gradcam", "gradcam++", "report")
    assert {path.name for path in out.iterdir()} == {f"{n}.{k}.dcm" for n in (1, 2) for k in kinds}
    assert run(["predict", films[0], "--checkpoint", str(checkpoint)]) == 0
    predicted = capsys.readouterr().out
    (group,) = srread(out / "1.report.dcm").content.get_image_measurement_groups()
    values = {m.name.value: float(m.value) for m in group.get_measurements()}
    assert f"{values['p-malignant']:.4f}" in predicted
    assert values["threshold"] == 0.125


def test_what_has_no_study_gets_no_dicom_results(
    checkpoint: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    film = phantom_file(tmp_path / "film.dcm", 1)
    picture = tmp_path / "film.png"
    Image.new("L", (40, 30)).save(picture)
    options = ("--checkpoint", checkpoint, "--out", tmp_path / "out", "--dicom-out")
    line = fails("explain", film, picture, *options, tmp_path / "dicom")
    assert "film.png: is no DICOM file, so there is no study" in line
    assert not (tmp_path / "dicom").exists()
    assert "holds the films" in fails("explain", film, *options, tmp_path)
    scale = fails("explain", film, *options, tmp_path / "dicom", "--method", "scale")
    assert "the scale map has no overlay" in scale


def test_results_replace_results_and_nothing_else(
    checkpoint: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    (tmp_path / "in").mkdir()
    film, out = phantom_file(tmp_path / "in" / "1.dcm", 1), tmp_path / "dicom"
    words = ["explain", film, "--checkpoint", checkpoint, "--out", tmp_path / "out"]
    words += ["--method", "gradcam", "--dicom-out", out]
    assert run([str(word) for word in words]) == 0
    first = {path: path.read_bytes() for path in out.iterdir()}
    assert run([str(word) for word in words]) == 0
    assert {path.name for path in out.iterdir()} == {path.name for path in first}
    for foreign in (film.read_bytes(), b"notes"):
        (out / "1.report.dcm").write_bytes(foreign)
        assert "1.report.dcm: is no result of hmc-fast" in fails(*words)
        assert (out / "1.report.dcm").read_bytes() == foreign
