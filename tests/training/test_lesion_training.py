"""Models with a lesion head from training to prediction: learned from circles, on both breasts."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from hmc_fast import UserError, load_model
from hmc_fast.cli.app import run
from hmc_fast.data import TASKS, Film, FilmCache, Finding, read_mias, write_phantoms
from hmc_fast.evaluation import Predictions, pool, read_predictions
from hmc_fast.evaluation.bilateral import compare_logits
from hmc_fast.models import HMCNet
from hmc_fast.study import run_cross_validation
from hmc_fast.training import TrainingConfig, lesion_training
from hmc_fast.training.lesion_training import calibrate
from hmc_fast.training.train import (
    PREDICTIONS_FILE,
    RESULT_FILE,
    RESUME_FILE,
    TrainingJob,
    train,
)

MODEL = "hmc_net_resnet18_lesions"
CONFIG = TrainingConfig(size=128, seed=3)
FOLDS = 2
CIRCLE = (Finding("CIRC", "malignant", 50, 60, 12),)


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> list[Film]:
    folder = tmp_path_factory.mktemp("lesion-training") / "phantoms"
    write_phantoms(folder, patients=30, size=128, seed=5)
    return read_mias(folder)


def cross_validate(films: list[Film], folder: Path, config: TrainingConfig = CONFIG) -> list[Path]:
    """The folders of the folds."""
    run_cross_validation([MODEL], config, films, folder, fold_count=FOLDS)
    return [folder / MODEL / f"fold{fold}" for fold in range(FOLDS)]


@pytest.fixture(scope="module")
def folds(films: list[Film], tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return cross_validate(films, tmp_path_factory.mktemp("study"))


def held_out(folder: Path) -> Predictions:
    return read_predictions(folder / PREDICTIONS_FILE)


def head_of(folder: Path) -> HMCNet:
    model = load_model(folder / "model.safetensors").model
    assert isinstance(model, HMCNet)
    assert model.lesion_head is not None
    return model


def test_phantoms_with_a_malignant_lesion_are_told_from_others(folds: list[Path]) -> None:
    auc = pool([held_out(folder) for folder in folds]).metrics()["auc_roc"]
    assert auc is not None
    assert auc > 0.75  # malignant lesions in both breasts, of half such patients, cost .1
    for folder in folds:
        result = json.loads((folder / RESULT_FILE).read_text())
        assert result["history"] == []
        assert result["lesion_fit"]["slope"] > 0
        metrics = held_out(folder).metrics()
        assert (metrics["recall"] or 0) + (metrics["specificity"] or 0) > 1.3  # calibrated


def test_predictions_are_those_of_the_checkpoint_compared_with_the_other_breast(
    films: list[Film], folds: list[Path]
) -> None:
    model, metadata = load_model(folds[0] / "model.safetensors")
    assert metadata.bilateral
    assert metadata.preprocessing == CONFIG.preprocessing(MODEL)
    assert (metadata.preprocessing.height, metadata.preprocessing.width) == (128, 96)
    kept = held_out(folds[0])
    chosen = [film for film in films if film.film_id in kept.films]
    images = FilmCache(metadata.preprocessing)
    batch = torch.stack([metadata.preprocessing.normalise(images.image(f.path)) for f in chosen])
    with torch.inference_mode():
        logits, rules = compare_logits(model(batch).numpy(), chosen)
    assert set(rules) == {"2v - v_mate"}
    np.testing.assert_allclose(logits, kept.logits, atol=1e-4)


def test_circles_and_labels_of_held_out_films_reach_nothing(
    films: list[Film], folds: list[Path], tmp_path: Path
) -> None:
    kept = held_out(folds[0])
    poisoned = [
        replace(film, findings=() if film.findings else CIRCLE)
        if film.film_id in kept.films
        else film
        for film in films
    ]
    task = TASKS["malignant"]
    # The folds are those of the honest labels; the held-out films lie about everything.
    index = {film.film_id: i for i, film in enumerate(films)}
    outside = [index[film] for film in kept.films]
    inside = [i for i in range(len(films)) if i not in outside]
    job = TrainingJob(
        MODEL, CONFIG, poisoned, task.select(poisoned)[1], inside, outside, 0, "patient"
    )
    train(job, tmp_path / "poisoned", FilmCache(CONFIG.preprocessing(MODEL)))
    again = held_out(tmp_path / "poisoned")
    assert again.films == kept.films
    assert not np.array_equal(again.labels, kept.labels)
    assert np.array_equal(again.logits, kept.logits)


def test_a_killed_training_ends_like_one_that_was_not(
    films: list[Film], folds: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ready = 0

    def kill(label: str, done: int, total: int) -> None:
        nonlocal ready
        ready += done
        if ready > 7:
            raise KeyboardInterrupt

    study = tmp_path / "study"
    with pytest.raises(KeyboardInterrupt):
        run_cross_validation([MODEL], CONFIG, films, study, fold_count=FOLDS, on_progress=kill)
    assert len(list((study / "features").iterdir())) == 8
    for folder, whole in zip(cross_validate(films, study), folds, strict=True):
        assert (folder / PREDICTIONS_FILE).read_bytes() == (whole / PREDICTIONS_FILE).read_bytes()
        ours, theirs = head_of(folder).state_dict(), head_of(whole).state_dict()
        assert all(torch.equal(ours[key], theirs[key]) for key in theirs)


def test_attention_learns_from_the_fitted_head_and_trunk_and_maps_stay(
    films: list[Film], folds: list[Path], tmp_path: Path
) -> None:
    config = replace(CONFIG, head_epochs=1, batch_size=4, learning_rate=1e-2)
    study = tmp_path / "study"
    run_cross_validation([MODEL], config, films, study, fold_count=FOLDS, only_jobs=[0])
    trained, fitted = head_of(study / MODEL / "fold0"), head_of(folds[0])
    before, after = fitted.state_dict(), trained.state_dict()
    for name, value in before.items():
        stays = name.startswith(("conv1", "bn1", "layer", "lesion_head."))
        stays &= name != "lesion_head.net_weight"
        assert torch.equal(value, after[name]) == stays, name
    assert trained.hsa["C4"].gamma.any()
    assert trained.lesion_head is not None
    assert trained.lesion_head.net_weight != 0
    history = (study / MODEL / "fold0" / "history.csv").read_text().splitlines()
    assert len(history) == 2
    assert not (study / MODEL / "fold0" / RESUME_FILE).exists()


def test_the_operating_point_is_chosen_on_scores_of_films_that_a_head_did_not_see(
    films: list[Film], folds: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: dict[str, Any] = {}
    original = lesion_training.choose_operating_point

    def choose(probabilities: Any, labels: Any, specificity: float) -> Any:
        seen.update(probabilities=probabilities, labels=labels)
        return original(probabilities, labels, specificity)

    monkeypatch.setattr(lesion_training, "choose_operating_point", choose)
    config = replace(CONFIG, at_specificity=0.8)
    run_cross_validation([MODEL], config, films, tmp_path, fold_count=FOLDS, only_jobs=[0])
    model, metadata = load_model(tmp_path / MODEL / "fold0" / "model.safetensors")
    point = metadata.operating_point
    assert point is not None
    assert point.films == len(metadata.training_films) == len(seen["labels"])
    called = seen["probabilities"] >= point.threshold
    assert 1 - called[seen["labels"] == 0].mean() == pytest.approx(point.specificity)
    assert point.specificity >= point.at_specificity == 0.8
    assert called[seen["labels"] == 1].mean() == pytest.approx(point.sensitivity)
    # The model's own scores of these films are other ones: it was fitted to their circles.
    chosen = [film for film in films if film.film_id in metadata.training_films]
    images = FilmCache(metadata.preprocessing)
    batch = torch.stack([metadata.preprocessing.normalise(images.image(f.path)) for f in chosen])
    with torch.inference_mode():
        logits, _ = compare_logits(model(batch).numpy(), chosen)
    fitted = np.sort(1 / (1 + np.exp(logits[:, 0] - logits[:, 1])))
    assert not np.allclose(fitted, np.sort(seen["probabilities"]), atol=1e-3)
    assert load_model(folds[0] / "model.safetensors").metadata.operating_point is None


def test_calibration_is_scikit_learns_and_keeps_the_order() -> None:
    rng = np.random.default_rng(0)
    labels = rng.random(200) < 0.2
    scores = 5 + 2 * labels + rng.standard_normal(200)
    slope, offset = calibrate(scores, labels.astype(int), balance=True)
    margins = slope * scores + offset
    probabilities = 1 / (1 + np.exp(-margins))
    weights = np.where(labels, 0.5 / labels.mean(), 0.5 / (1 - labels.mean()))
    assert np.average(probabilities, weights=weights) == pytest.approx(0.5, abs=1e-3)
    assert np.average(scores * (probabilities - labels), weights=weights) == pytest.approx(
        0, abs=1e-2
    )
    slope, offset = calibrate(-scores, labels.astype(int), balance=True)
    assert slope > 0


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"task": "three_class"}, "tells two classes apart, not 3"),
        ({"lesion_weight": 0.5}, "learns from circles by its lesion head"),
        ({"average_flips": True}, "cannot average over flips"),
        ({"train_trunk": True}, "no effect without --head-epochs"),
        ({"at_specificity": 0.9, "head_epochs": 1}, "needs the out-of-fold scores"),
    ],
)
def test_settings_that_a_head_does_not_take_are_refused(
    films: list[Film], tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    with pytest.raises(UserError, match=message):
        cross_validate(films, tmp_path, replace(CONFIG, **changes))


def test_rotated_copies_and_films_without_circles_are_refused(
    films: list[Film], tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="not on rotated copies"):
        run_cross_validation(
            [MODEL], CONFIG, films, tmp_path / "a", fold_count=2, copies=2, protocol="augment-first"
        )
    blind = [
        replace(f, findings=tuple(replace(g, x=None, y=None, radius=None) for g in f.findings))
        for f in films
    ]
    with pytest.raises(UserError, match="has a malignant lesion with a circle"):
        cross_validate(blind, tmp_path / "b")


def predicted(capsys: pytest.CaptureFixture[str], *arguments: object) -> list[dict[str, Any]]:
    capsys.readouterr()
    assert run(["predict", *map(str, arguments), "--json"]) == 0
    films: list[dict[str, Any]] = json.loads(capsys.readouterr().out)["films"]
    return films


def test_predict_takes_a_patients_films_together(
    films: list[Film], folds: list[Path], capsys: pytest.CaptureFixture[str]
) -> None:
    kept = held_out(folds[0])
    left, right = [film.path for film in films if film.film_id in kept.films][:2]
    checkpoint = ("--checkpoint", folds[0] / "model.safetensors")
    both = predicted(capsys, left, right, *checkpoint)
    assert [film["rule"] for film in both] == ["2v - v_mate"] * 2
    for film, probabilities in zip(both, kept.probabilities, strict=False):
        assert film["probabilities"]["malignant"] == pytest.approx(probabilities[1], abs=1e-4)
    (alone,) = predicted(capsys, left, *checkpoint)
    assert alone["rule"] == "v"
    own = predicted(capsys, left, right, *checkpoint, "--own")
    assert own[0]["probabilities"] == alone["probabilities"]
    assert own[0]["probabilities"] != both[0]["probabilities"]


def test_the_lesion_map_is_the_usual_explanation(
    films: list[Film], folds: list[Path], tmp_path: Path
) -> None:
    film = next(
        f for f in films if f.severity == "malignant" and f.film_id in held_out(folds[0]).films
    )
    checkpoint = ["--checkpoint", str(folds[0] / "model.safetensors")]
    assert run(["explain", str(film.path), *checkpoint, "--out", str(tmp_path), "--maps"]) == 0
    told = json.loads((tmp_path / "explanations.json").read_text())
    assert "by itself" in told["films"][0]["notes"][0]
    (only,) = told["films"][0]["maps"]
    assert only["method"] == "lesions"
    values = np.load(tmp_path / f"{film.film_id}.npz")["lesions"]
    assert values.shape == (128, 96)
    assert 0 <= values.min() < values.max() <= 1


def test_the_exported_graph_says_what_the_checkpoint_says(
    folds: list[Path], films: list[Film], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    checkpoint, graph = str(folds[0] / "model.safetensors"), str(tmp_path / "model.onnx")
    assert run(["export", "onnx", checkpoint, "--out", graph]) == 0
    data = str(films[0].path.parent)
    capsys.readouterr()
    arguments = ["verify", graph, "--checkpoint", checkpoint, "--data", data, "--films", "8"]
    assert run([*arguments, "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["rows"]
    assert [row["status"] for row in rows] == ["ok"] * 3  # torch, ONNX Runtime, OpenVINO


def test_evaluation_applies_the_rule_of_the_checkpoint(
    folds: list[Path], films: list[Film], tmp_path: Path
) -> None:
    kept = held_out(folds[0])
    table = tmp_path / "predictions.csv"
    arguments = ["--checkpoint", str(folds[0] / "model.safetensors"), "--out", str(table)]
    assert run(["evaluate", *arguments, "--data", str(films[0].path.parent)]) == 0
    evaluated = read_predictions(table)
    assert evaluated.films == kept.films
    np.testing.assert_allclose(evaluated.logits, kept.logits, atol=1e-4)
