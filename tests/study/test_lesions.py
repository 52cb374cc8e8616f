"""Lesion heads over folds: what is held out stays out, and phantom lesions are seen."""

from dataclasses import dataclass, replace

import numpy as np
import pytest
import torch

from hmc_fast.data import (
    TASKS,
    Film,
    FilmCache,
    Finding,
    Folds,
    Preprocessing,
    make_folds,
    read_mias,
    write_phantoms,
)
from hmc_fast.evaluation import pool
from hmc_fast.models import HMCNet, create_model
from hmc_fast.models.lesion_head import CELL, LesionHead, black_level
from hmc_fast.study import lesion_attention
from hmc_fast.study.lesions import (
    ATTENTION_RECIPES,
    RECIPES,
    SCORED_RECIPES,
    Cohort,
    LesionRecipe,
    LesionStudy,
    NestedFold,
    cross_validate_lesion_head,
    nested_fold,
    recipe_scores,
    training_positions,
)
from hmc_fast.training.features import FilmFeatures, cache_features, read_features
from hmc_fast.training.lesion_fit import film_scores, fit_lesion_head

FOLDS = 3
PREPROCESSING = Preprocessing(256, 192, native=True)
CALCIFIED = Finding("CALC", "malignant", 60, 128, 40)
"""A large circle in the middle of the films."""


@dataclass(frozen=True)
class Material:
    """Phantoms with the features of a trunk that has learned nothing, and their folds."""

    cohort: Cohort
    folds: Folds
    net: HMCNet

    def with_findings(self, findings: dict[int, tuple[Finding, ...]]) -> Cohort:
        """The films, some of them with other findings, and labels to match."""
        films = tuple(
            replace(film, findings=findings.get(index, film.findings))
            for index, film in enumerate(self.cohort.films)
        )
        labels = tuple(int(film.severity == "malignant") for film in films)
        return replace(self.cohort, films=films, labels=labels)

    def head(self, fold: int) -> tuple[LesionHead, list[int]]:
        """A head fitted outside ``fold``, and the films of the fold."""
        training, held_out = self.folds.split(list(self.cohort.films), fold)
        positions = training_positions(self.cohort.subset(training))
        usable = [film for film in positions if film is not None]
        return fit_lesion_head(usable, *self.cohort.channels), held_out


@pytest.fixture(scope="module")
def material(tmp_path_factory: pytest.TempPathFactory) -> Material:
    folder = tmp_path_factory.mktemp("lesions")
    write_phantoms(folder / "films", patients=24, size=256, seed=3)
    films, labels = TASKS["malignant"].select(read_mias(folder / "films"))
    torch.manual_seed(0)
    net = create_model("resnet18_lesions")
    assert isinstance(net, HMCNet)
    files = cache_features(
        [film.path for film in films], net, FilmCache(PREPROCESSING), folder / "cache"
    )
    channels = net.stage_channels["C3"], net.stage_channels["C4"]
    cohort = Cohort(tuple(films), tuple(labels), tuple(files), channels)
    return Material(cohort, make_folds(films, labels, TASKS["malignant"], FOLDS, seed=0), net)


@pytest.fixture(scope="module")
def result(material: Material) -> LesionStudy:
    return cross_validate_lesion_head(material.cohort, material.folds)


def test_malignant_phantoms_are_told_from_others(result: LesionStudy) -> None:
    for predictions in (result.own, result.bilateral):
        auc = predictions.metrics()["auc_roc"]
        assert auc is not None
        assert auc > 0.85
    assert result.left_out == ()
    assert result.compared.all()


def test_the_malignant_map_points_at_the_lesion(material: Material) -> None:
    hits = []
    for fold in range(FOLDS):
        head, held_out = material.head(fold)
        for index in held_out:
            film = material.cohort.films[index]
            if film.severity == "malignant":
                features = read_features(material.cohort.files[index])
                hits.append(points_at(head, features, film))
    assert len(hits) == sum(material.cohort.labels)
    assert np.mean(hits) > 0.7


def test_pointing_is_told_of_the_films_with_a_malignant_circle(
    material: Material, result: LesionStudy
) -> None:
    told = [pointing for pointing in result.pointing if pointing is not None]
    malignant = [film.severity == "malignant" for film in material.cohort.films]
    assert [pointing is not None for pointing in result.pointing] == malignant
    assert np.mean([pointing.distance <= 0 for pointing in told]) > 0.7
    for pointing in told:
        assert 0 < pointing.chance_inside < pointing.chance_beside < 1


def points_at(head: LesionHead, features: FilmFeatures, film: Film) -> bool:
    finding = film.findings[0]
    assert finding.x is not None
    assert finding.y is not None
    assert finding.radius is not None
    row, column, radius = features.frame.circle(finding.x, finding.y, finding.radius)
    with torch.inference_mode():
        malignant = head.maps(features.cells[None].float())[0, 0]
    malignant = malignant.masked_fill(~features.breast, -torch.inf)
    peak = np.array(np.unravel_index(int(malignant.argmax()), malignant.shape))
    return bool(np.hypot(*(peak * CELL + (CELL - 1) / 2 - [row, column])) < radius)


def test_pairs_never_straddle_folds_and_predictions_keep_the_films_order(
    material: Material, result: LesionStudy
) -> None:
    assert result.own.films == tuple(film.sample_id for film in material.cohort.films)
    fold_of = {a.film: a.fold for a in material.folds.assignments}
    assert result.own.folds == tuple(fold_of[film] for film in result.own.films)
    for patient in set(result.own.patients):
        members = [i for i, p in enumerate(result.own.patients) if p == patient]
        assert len({result.own.folds[i] for i in members}) == 1


def test_two_runs_are_one_and_the_seed_matters(material: Material, result: LesionStudy) -> None:
    again = cross_validate_lesion_head(material.cohort, material.folds)
    other = cross_validate_lesion_head(material.cohort, material.folds, seed=1)
    assert np.array_equal(again.own.logits, result.own.logits)
    assert not np.array_equal(other.own.logits, result.own.logits)


@pytest.mark.parametrize("fold", range(FOLDS))
def test_circles_and_labels_of_held_out_films_do_not_reach_their_scores(
    material: Material, result: LesionStudy, fold: int
) -> None:
    _, held_out = material.folds.split(list(material.cohort.films), fold)
    poisoned = cross_validate_lesion_head(
        material.with_findings(dict.fromkeys(held_out, (CALCIFIED,))), material.folds
    )
    assert np.array_equal(poisoned.own.logits[held_out], result.own.logits[held_out])
    assert np.array_equal(poisoned.bilateral.logits[held_out], result.bilateral.logits[held_out])
    others = np.setdiff1d(np.arange(len(result.own.films)), held_out)
    assert not np.array_equal(poisoned.own.logits[others], result.own.logits[others])


def test_a_fold_is_its_training_films_alone(material: Material, result: LesionStudy) -> None:
    head, held_out = material.head(1)
    for index in held_out:
        alone = film_scores(head, read_features(material.cohort.files[index]), ["maximum"])
        margin = result.own.logits[index, 1] - result.own.logits[index, 0]
        assert margin == alone["maximum"]


def test_the_model_says_of_a_film_what_its_cached_features_say(material: Material) -> None:
    fitted, held_out = material.head(0)
    model, images = material.net.eval(), FilmCache(PREPROCESSING)
    assert model.lesion_head is not None
    model.lesion_head.load_state_dict(fitted.state_dict())
    model.lesion_head.black.fill_(black_level(PREPROCESSING.mean[0], PREPROCESSING.std[0]))
    for index in held_out:
        image = PREPROCESSING.normalise(images.image(material.cohort.films[index].path))
        with torch.inference_mode():
            logits = model(image[None])[0]
        cached = film_scores(fitted, read_features(material.cohort.files[index]), ["maximum"])
        assert float(logits[1] - logits[0]) == pytest.approx(cached["maximum"], abs=0.02)


def test_a_lone_film_and_a_lesion_without_a_circle(material: Material) -> None:
    unlocated = {
        index: tuple(replace(f, x=None, y=None, radius=None) for f in film.findings)
        for index, film in enumerate(material.cohort.films[:8])
    }
    rest = range(1, len(material.cohort.films))
    films = material.with_findings(unlocated).subset(rest)
    assignments = tuple(
        a for a in material.folds.assignments if a.film != material.cohort.films[0].film_id
    )
    outcome = cross_validate_lesion_head(films, replace(material.folds, assignments=assignments))
    assert outcome.left_out == tuple(c.film_id for c in films.films[:7] if c.findings)
    assert outcome.left_out
    assert outcome.compared.tolist() == [False, *[True] * (len(rest) - 1)]
    assert np.array_equal(outcome.bilateral.logits[0], outcome.own.logits[0])
    assert np.isfinite(outcome.own.logits).all()


def nested(material: Material, films: Cohort, fold: int) -> NestedFold:
    positions = training_positions(films)
    return nested_fold(films, positions, material.folds, fold, recipes=RECIPES[:6], inner_folds=2)


def test_the_nested_choice_sees_the_training_films_alone(material: Material) -> None:
    choices = [nested(material, material.cohort, fold) for fold in range(FOLDS)]
    pooled = pool([choice.predictions for choice in choices])
    assert sorted(pooled.films) == sorted(film.sample_id for film in material.cohort.films)
    auc = pooled.metrics()["auc_roc"]
    assert auc is not None
    assert auc > 0.85
    assert {choice.recipe for choice in choices} <= set(RECIPES)
    assert all(choice.inner_auc > 0.85 for choice in choices)
    _, held_out = material.folds.split(list(material.cohort.films), 0)
    poisoned = nested(material, material.with_findings(dict.fromkeys(held_out, (CALCIFIED,))), 0)
    assert poisoned.recipe == choices[0].recipe
    assert poisoned.inner_auc == choices[0].inner_auc
    assert np.array_equal(poisoned.predictions.logits, choices[0].predictions.logits)


def test_labels_of_whole_films_teach_without_circles_and_without_held_out_films(
    material: Material, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(lesion_attention, "EPOCHS", 0)
    films = material.cohort
    scores = recipe_scores(films, material.folds)
    assert tuple(scores) == SCORED_RECIPES
    labelled = LesionRecipe(circles=False)
    assert not np.array_equal(scores[labelled], scores[RECIPES[0]])
    assert np.isfinite(scores[labelled]).all()
    moved = {
        index: tuple(replace(f, x=99, y=99, radius=5) for f in film.findings)
        for index, film in enumerate(films.films)
    }
    again = recipe_scores(material.with_findings(moved), material.folds)
    assert np.array_equal(again[labelled], scores[labelled])
    assert not np.array_equal(again[RECIPES[0]], scores[RECIPES[0]])
    _, held_out = material.folds.split(list(films.films), 1)
    poisoned = recipe_scores(
        material.with_findings(dict.fromkeys(held_out, (CALCIFIED,))), material.folds
    )
    for recipe in (labelled, LesionRecipe(calcification=True)):
        assert np.array_equal(poisoned[recipe][held_out], scores[recipe][held_out])
        others = np.setdiff1d(np.arange(len(films.films)), held_out)
        assert not np.array_equal(poisoned[recipe][others], scores[recipe][others])


def test_recipes_are_declared_with_the_fixed_one_first() -> None:
    assert RECIPES[0] == LesionRecipe()
    assert len(set(RECIPES)) == len(RECIPES) == 18
    assert SCORED_RECIPES[: len(RECIPES)] == RECIPES
    assert len({*SCORED_RECIPES, *ATTENTION_RECIPES}) == 24
