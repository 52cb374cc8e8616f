"""From a film to its results: what ``predict`` and ``explain`` say of it, for the work of one."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from dicom_phantoms import phantom_file, small_checkpoint
from nodes import reported

from hmc_fast import load_model
from hmc_fast.cli.app import run
from hmc_fast.data import film_image, pixels
from hmc_fast.explain.film import usual_methods
from hmc_fast.explain.methods import activation_map
from hmc_fast.node.scoring import FilmReader


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return small_checkpoint(tmp_path / "model.safetensors")


@pytest.fixture
def reader(checkpoint: Path) -> FilmReader:
    return FilmReader.of(checkpoint, backend="auto", device=torch.device("cpu"))


def test_a_film_is_decoded_once_and_its_score_is_that_of_predict(
    reader: FilmReader,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    film = phantom_file(tmp_path / "film.dcm", 1)
    assert run(["predict", str(film), "--checkpoint", str(checkpoint), "--json"]) == 0
    (told,) = json.loads(capsys.readouterr().out)["films"]
    original, decoded = pixels.read_dicom, list[Path]()

    def counted(path: Path, **options: bool) -> object:
        decoded.append(path)
        return original(path, **options)

    monkeypatch.setattr(pixels, "read_dicom", counted)
    results, picture = reader.read(film)
    assert decoded == [film]
    assert reported(results["report"])[1] == round(told["probabilities"]["malignant"], 6)
    assert picture == pixels.picture_of(film)


def test_one_model_scores_and_draws_the_map_of_the_one_in_the_checkpoint(
    reader: FilmReader, checkpoint: Path, tmp_path: Path
) -> None:
    (scoring,) = reader.scorer.models
    assert scoring.model is reader.model
    preprocessing = reader.metadata.preprocessing
    placed = film_image(phantom_file(tmp_path / "film.dcm", 1), preprocessing).image
    image, (method,) = preprocessing.normalise(placed), usual_methods(reader.model)
    ours, theirs = (
        activation_map(model, image, method, 1)
        for model in (reader.model, load_model(checkpoint).model)
    )
    assert ours.layer == theirs.layer
    assert theirs.values.any()
    np.testing.assert_allclose(ours.values, theirs.values, atol=1e-3)
