"""Reports and overlays: valid by an independent checker, and about the film that they name."""

import shutil
import subprocess
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dicom_phantoms import NAME, PATIENT, STUDY, phantom_file
from highdicom.sr import srread
from pydicom import dcmread
from pydicom.dataset import Dataset

from hmc_fast.data import film_image
from hmc_fast.data.breast import breast_mask
from hmc_fast.data.film_image import FilmImage
from hmc_fast.data.preprocessing import Preprocessing
from hmc_fast.dicom_results.overlay import overlay_picture
from hmc_fast.dicom_results.reading import Reading
from hmc_fast.dicom_results.source import read_source
from hmc_fast.dicom_results.writing import results_of, write_results
from hmc_fast.errors import UserError
from hmc_fast.explain.methods import ActivationMap


@pytest.fixture
def files(
    path: Path, film: FilmImage, reading: Reading, heat: ActivationMap, tmp_path: Path
) -> dict[str, Path]:
    """The written report and overlay."""
    write_results(tmp_path / "out", "film", results_of(path, film, reading, [heat]))
    return {name: tmp_path / "out" / f"film.{name}.dcm" for name in ("report", "gradcam")}


def validator_errors(path: Path) -> list[str]:
    if shutil.which("dciodvfy") is None:
        pytest.skip("needs dciodvfy of Debian's dicom3tools")
    told = subprocess.run(["dciodvfy", str(path)], capture_output=True, text=True, check=False)
    return [line for line in told.stderr.splitlines() if line.startswith("Error")]


@pytest.mark.parametrize("kind", ["report", "gradcam"])
def test_an_independent_checker_finds_no_error_and_finds_one_that_is_made(
    files: dict[str, Path], kind: str, tmp_path: Path
) -> None:
    assert validator_errors(files[kind]) == []
    broken = dcmread(files[kind])
    del broken.StudyInstanceUID
    broken.save_as(tmp_path / "broken.dcm")
    assert validator_errors(tmp_path / "broken.dcm")


def test_dcmtk_reads_the_report(files: dict[str, Path]) -> None:
    if shutil.which("dsrdump") is None:
        pytest.skip("needs dsrdump of Debian's dcmtk")
    told = subprocess.run(
        ["dsrdump", "+Pl", str(files["report"])], capture_output=True, text=True, check=False
    )
    assert told.returncode == 0, told.stderr
    for said in (
        '"Model output for malignant, 0 to 1")="0.25"',
        '"Operating point: malignant from this model output on")="0.125"',
        '(class-malignant,99HMCFAST,"malignant")',
        '"Laterality")=(24028007,SCT,"Right")',
        '"Algorithm Name")="hmc-fast hmc_net_resnet18"',
        "RESEARCH ONLY",
    ):
        assert said in told.stdout


def test_the_report_follows_its_template(files: dict[str, Path], path: Path) -> None:
    report = srread(files["report"])
    (group,) = report.content.get_image_measurement_groups()
    values = {m.name.value: float(m.value) for m in group.get_measurements()}
    assert values == {"p-rest": 0.75, "p-malignant": 0.25, "threshold": 0.125}
    (image,) = group.source_images
    assert image.referenced_sop_instance_uid == dcmread(path).SOPInstanceUID
    assert (report.VerificationFlag, report.PreliminaryFlag) == ("UNVERIFIED", "PRELIMINARY")


@pytest.mark.parametrize("kind", ["report", "gradcam"])
def test_results_join_the_films_study(files: dict[str, Path], kind: str, path: Path) -> None:
    source, result = dcmread(path), dcmread(files[kind])
    assert (result.StudyInstanceUID, result.PatientID) == (STUDY, PATIENT)
    assert result.PatientName == NAME
    assert result.SpecificCharacterSet == "ISO_IR 192"
    for name in ("SOPInstanceUID", "SeriesInstanceUID"):
        assert result[name].value != source[name].value
    assert "RESEARCH ONLY" in result.SeriesDescription
    assert str(source.SOPInstanceUID) in str(result)
    if kind == "gradcam":
        assert result.Laterality == "R"
        assert result.SourceImageSequence[0].ReferencedSOPInstanceUID == source.SOPInstanceUID


def uids(results: dict[str, Dataset]) -> set[str]:
    return {str(dataset.SOPInstanceUID) for dataset in results.values()}


def test_a_result_made_again_is_the_same_instance_and_another_one_is_not(
    path: Path, film: FilmImage, reading: Reading, heat: ActivationMap
) -> None:
    first = uids(results_of(path, film, reading, [heat]))
    assert uids(results_of(path, film, reading, [heat])) == first
    other_pixels = film._replace(pixels=film.pixels[::-1].copy())
    for other in (
        results_of(path, film, replace(reading, probabilities=(0.5, 0.5)), [heat]),
        results_of(path, film, replace(reading, checkpoint="cd" * 32), [heat]),
        results_of(path, other_pixels, reading, [heat]),
    ):
        assert not uids(other) & first
    weaker = results_of(path, film, reading, [replace(heat, values=heat.values / 2)])
    assert len(uids(weaker) - first) == 1


def test_the_map_is_on_the_breast_alone(film: FilmImage, heat: ActivationMap) -> None:
    picture = overlay_picture(film, heat).astype(int)
    assert picture.shape == (*film.pixels.shape, 3)
    coloured = np.ptp(picture, axis=-1) > 0
    mask = breast_mask(film.pixels)
    assert not coloured[~mask].any()
    assert coloured[mask].mean() > 0.95
    np.testing.assert_allclose(picture[~mask][:, 0], 255 * film.pixels[~mask], atol=1)


@pytest.mark.parametrize("side", ["L", "R"])
def test_the_map_lies_where_it_lay_for_the_network(tmp_path: Path, side: str) -> None:
    """A place of the network's image, which was cropped and mirrored, is found on the film."""
    path = phantom_file(tmp_path / "film.dcm", 3, 128)
    if side == "L":
        dataset = dcmread(path)
        dataset.PixelData = dataset.pixel_array[:, ::-1].tobytes()
        dataset.save_as(path)
    film = film_image(path, Preprocessing(96, 64, native=True))
    assert film.frame.box.mirrored == (side == "R")
    values = np.zeros((96, 64), np.float32)
    values[30:35, 10:15] = 1
    picture = overlay_picture(film, ActivationMap("gradcam", "x", 1, values, (12, 8))).astype(int)
    rows, columns = np.nonzero(np.ptp(picture, axis=-1) > 20)
    row, column = film.frame.to_film(32, 12)
    assert (rows.mean(), columns.mean()) == pytest.approx((row, column), abs=1)


def test_a_large_film_gives_a_picture_of_bounded_size(heat: ActivationMap, tmp_path: Path) -> None:
    path = phantom_file(tmp_path / "large.dcm", 1)
    dataset = dcmread(path)
    enlarged = dataset.pixel_array.repeat(20, 0).repeat(20, 1)
    dataset.Rows, dataset.Columns = enlarged.shape
    dataset.PixelData = enlarged.tobytes()
    dataset.save_as(path)
    film = film_image(path, Preprocessing(96, 64, native=True))
    assert film.pixels.shape == (1920, 1920)
    assert overlay_picture(film, heat).shape == (1536, 1536, 3)


@pytest.mark.filterwarnings("ignore::UserWarning")  # pydicom's, of the values made here
def test_bad_headers_are_one_line_or_left_out(tmp_path: Path) -> None:
    good = phantom_file(tmp_path / "good.dcm", 1, PatientBirthDate="?", PatientSex="female")
    header = read_source(good).header
    assert (header.PatientBirthDate, header.PatientSex, header.StudyDate) == ("", "", "20260101")
    for bad, message in (
        ({"StudyInstanceUID": ""}, "has no valid StudyInstanceUID"),
        ({"SOPInstanceUID": "1.a"}, "has no valid SOPInstanceUID"),
        ({"PatientID": "x" * 65}, "its PatientID is not valid"),
    ):
        path = phantom_file(tmp_path / "bad.dcm", 1, **bad)
        with pytest.raises(UserError, match=message):
            read_source(path)
    unknown = phantom_file(tmp_path / "unknown.dcm", 1, ImageLaterality="B", InstanceNumber=None)
    source = read_source(unknown)
    assert (source.side, source.number) == ("", 1)
