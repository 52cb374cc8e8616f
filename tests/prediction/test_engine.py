"""What is refused before and on a node of a cluster."""

import os
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from dicom_phantoms import small_checkpoint

from hmc_fast import UserError
from hmc_fast.data.limits import MAX_PIXELS
from hmc_fast.prediction.engine import LocalEngine
from hmc_fast.prediction.job import PredictionJob
from hmc_fast.prediction.manifest import file_digest, make_manifest
from hmc_fast.prediction.ray_engine import _device, _score_chunk, check_engine, release
from hmc_fast.prediction.recipe import Recipe
from hmc_fast.prediction.sources import find_sources
from hmc_fast.progress import no_progress


@pytest.fixture
def recipe(tmp_path: Path) -> Recipe:
    path = small_checkpoint(tmp_path / "model.safetensors")
    digest = file_digest(path)
    return Recipe((path,), (digest,), "auto", "cpu", "fp32", False, 8, 0, False, MAX_PIXELS)


def test_a_name_that_is_no_engine_or_a_device_that_ray_chooses_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    check_engine("local", "cuda:3")
    for wrong in ("rays", "ray://", "http://host", ""):
        with pytest.raises(UserError, match="choose local, ray or ray://HOST:PORT"):
            check_engine(wrong, "cpu")
    with pytest.raises(UserError, match="picks the GPU"):
        check_engine("ray", "cuda:1")
    monkeypatch.setitem(sys.modules, "ray", None)
    with pytest.raises(UserError, match=r"pip install 'hmc-fast\[ray\]'"):
        check_engine("ray", "cpu")


def test_the_device_is_one_that_the_cluster_has() -> None:
    assert _device("auto", {"CPU": 4.0}) == "cpu"
    assert _device("auto", {"CPU": 4.0, "GPU": 1.0}) == "cuda"
    for asked, has in (("cuda", {"CPU": 4.0}), ("cpu", {"GPU": 1.0}), ("auto", {})):
        with pytest.raises(UserError, match=f"none for --device {asked}"):
            _device(asked, has)


def test_a_task_gives_the_scores_of_the_local_engine(
    recipe: Recipe, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(pictures)
    sources = find_sources([Path("mdb001.pgm"), Path("mdb002.pgm")])
    (chunk,) = make_manifest(sources, {}).chunks
    local = LocalEngine(recipe.scorer(recipe.load()))
    ((_, expected),) = local.scores([chunk], lambda films: None)
    os.chdir("/")
    assert _score_chunk(recipe, str(pictures), release(), chunk.entries) == expected


def test_a_task_reads_films_of_the_recipe_s_size_alone(
    recipe: Recipe, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(pictures)  # the task enters it, too
    (chunk,) = make_manifest(find_sources([Path("mdb001.pgm")]), {}).chunks
    small = replace(recipe, max_pixels=100)
    (score,) = _score_chunk(small, str(pictures), release(), chunk.entries)
    assert "too many pixels" in score.error
    (score,) = _score_chunk(recipe, str(pictures), release(), chunk.entries)
    assert not score.error


def test_a_node_that_differs_says_so(
    recipe: Recipe, pictures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # the task enters another
    (chunk, *_) = make_manifest(find_sources([pictures]), {}).chunks
    here, entries = str(tmp_path), chunk.entries
    with pytest.raises(UserError, match="has hmc-fast, revision, torch"):
        _score_chunk(recipe, here, ("another",), entries)
    with pytest.raises(UserError, match="gone cannot be entered"):
        _score_chunk(recipe, f"{here}/gone", release(), entries)
    elsewhere = tuple(replace(entry, path=f"/elsewhere/{entry.path}") for entry in entries)
    with pytest.raises(UserError, match="does not see /elsewhere/"):
        _score_chunk(recipe, here, release(), elsewhere)
    other = replace(recipe, digests=("0" * 64,))
    with pytest.raises(UserError, match="is another checkpoint"):
        _score_chunk(other, here, release(), entries)


def test_results_do_not_depend_on_the_order_in_which_chunks_are_ready(
    recipe: Recipe, pictures: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hmc_fast.prediction.manifest.CHUNK_FILMS", 2)

    class Backwards(LocalEngine):
        def scores(self, chunks, on_films):  # type: ignore[no-untyped-def]
            return super().scores(chunks[::-1], on_films)

    scorer = recipe.scorer(recipe.load())
    films, classes = find_sources([pictures]), ("rest", "malignant")
    ahead, back = (
        PredictionJob(films, engine, {}, classes, "film").run(no_progress)
        for engine in (LocalEngine(scorer), Backwards(scorer))
    )
    assert ahead == back
