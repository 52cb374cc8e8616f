"""Lesion heads over folds: what is held out stays out, and phantom lesions are seen."""

from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hmc_fast.data import TASKS, Case, Finding, Folds, make_folds, read_mias, write_phantoms
from hmc_fast.data.mias import side_of
from hmc_fast.data.native import NativePreprocessing
from hmc_fast.models import HMCNet, create_model
from hmc_fast.models.lesion_head import stage_channels
from hmc_fast.study.lesions import LesionStudy, cross_validate_lesion_head, lesion_maps
from hmc_fast.training.features import cache_features, read_features
from hmc_fast.training.lesion_fit import film_positions, fit_lesion_head

FOLDS = 3


@dataclass(frozen=True)
class Material:
    """Phantoms, and their features by a trunk that has learned nothing."""

    cases: list[Case]
    labels: list[int]
    files: list[Path]
    folds: Folds
    channels: tuple[int, int]

    @property
    def sides(self) -> list[str]:
        return [side_of(case.film_id) for case in self.cases]


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    folder = tmp_path_factory.mktemp("lesions")
    write_phantoms(folder / "films", patients=24, size=256, seed=3)
    task = TASKS["malignant"]
    cases, labels = task.select(read_mias(folder / "films"))
    torch.manual_seed(0)
    net = create_model("resnet18")
    assert isinstance(net, HMCNet)
    files = cache_features(
        [case.path for case in cases], net, NativePreprocessing(film_side=256), folder / "cache"
    )
    folds = make_folds(cases, labels, task, FOLDS, seed=0)
    return Material(cases, labels, files, folds, stage_channels(net))


def study(material: Material, cases: list[Case] | None = None, seed: int = 0) -> LesionStudy:
    return cross_validate_lesion_head(
        material.cases if cases is None else cases,
        material.labels,
        material.files,
        material.folds,
        material.sides,
        channels=material.channels,
        seed=seed,
    )


@pytest.fixture(scope="module")
def result(material: Material) -> LesionStudy:
    return study(material)


def test_phantom_lesions_are_found(material: Material, result: LesionStudy) -> None:
    for predictions in (result.own, result.bilateral):
        auc = predictions.metrics()["auc_roc"]
        assert auc is not None
        assert auc > 0.85
    assert result.left_out == ()
    assert result.compared.all()
    hits = []
    for case, file, maps in zip(material.cases, material.files, result.maps, strict=True):
        if case.severity == "malignant":
            finding = case.findings[0]
            assert finding.x is not None
            assert finding.y is not None
            assert finding.radius is not None
            row, column, radius = read_features(file).frame.circle(
                finding.x, finding.y, finding.radius
            )
            malignant = maps.maps[0, 0].masked_fill(~maps.breast[0, 0], -torch.inf)
            peak = np.unravel_index(int(malignant.argmax()), malignant.shape)
            hits.append(np.hypot(peak[0] * 16 + 7.5 - row, peak[1] * 16 + 7.5 - column) < radius)
    assert np.mean(hits) > 0.7


def test_pairs_never_straddle_folds_and_predictions_keep_the_films_order(
    material: Material, result: LesionStudy
) -> None:
    assert result.own.films == tuple(case.sample_id for case in material.cases)
    folds_of = {a.film: a.fold for a in material.folds.assignments}
    assert result.own.folds == tuple(folds_of[film] for film in result.own.films)
    for patient in set(result.own.patients):
        members = [i for i, p in enumerate(result.own.patients) if p == patient]
        assert len({result.own.folds[i] for i in members}) == 1


def test_two_runs_are_one_and_the_seed_matters(material: Material, result: LesionStudy) -> None:
    assert np.array_equal(study(material).own.logits, result.own.logits)
    assert not np.array_equal(study(material, seed=1).own.logits, result.own.logits)


@pytest.mark.parametrize("fold", range(FOLDS))
def test_circles_and_labels_of_held_out_films_do_not_reach_their_scores(
    material: Material, result: LesionStudy, fold: int
) -> None:
    _, held_out = material.folds.split(material.cases, fold)
    poison = (Finding("CALC", "malignant", 60, 128, 40),)
    cases = [
        replace(case, findings=poison) if index in held_out else case
        for index, case in enumerate(material.cases)
    ]
    labels = [1 - y if i in held_out else y for i, y in enumerate(material.labels)]
    poisoned = study(replace(material, labels=labels), cases)
    assert np.array_equal(poisoned.own.logits[held_out], result.own.logits[held_out])
    assert np.array_equal(poisoned.bilateral.logits[held_out], result.bilateral.logits[held_out])
    others = np.setdiff1d(np.arange(len(cases)), held_out)
    assert not np.array_equal(poisoned.own.logits[others], result.own.logits[others])


def test_a_fold_is_its_training_films_alone(material: Material, result: LesionStudy) -> None:
    training, held_out = material.folds.split(material.cases, 1)
    films = [film_positions(read_features(material.files[i]), material.cases[i]) for i in training]
    head = fit_lesion_head([film for film in films if film is not None], *material.channels)
    for index in held_out:
        alone = lesion_maps(head, read_features(material.files[index]))
        assert alone.logit == result.maps[index].logit
        margin = result.own.logits[index, 1] - result.own.logits[index, 0]
        assert margin == pytest.approx(alone.logit)


def test_a_lone_film_and_a_lesion_without_a_circle(material: Material) -> None:
    cases = [
        replace(
            case, findings=tuple(replace(f, x=None, y=None, radius=None) for f in case.findings)
        )
        if index < 8
        else case
        for index, case in enumerate(material.cases)
    ]
    lone = replace(material, cases=cases[1:], labels=material.labels[1:], files=material.files[1:])
    assignments = tuple(a for a in material.folds.assignments if a.film != cases[0].film_id)
    lone = replace(lone, folds=replace(material.folds, assignments=assignments))
    outcome = study(lone)
    assert outcome.left_out == tuple(c.film_id for c in cases[1:8] if c.findings)
    assert outcome.compared.tolist() == [False, *[True] * (len(cases) - 2)]
    assert np.array_equal(outcome.bilateral.logits[0], outcome.own.logits[0])
    assert np.isfinite(outcome.own.logits).all()
