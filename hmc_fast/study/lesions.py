"""Cross-validation of the lesion head on cached features, by a fixed recipe or a nested choice."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from hmc_fast.data import TASKS, Film, Folds, make_folds
from hmc_fast.evaluation import Predictions
from hmc_fast.evaluation.bilateral import OTHER_SIDE, compare_films, margin_logits
from hmc_fast.models.lesion_head import COUNTED_MAPS, LESION_MAPS, READOUTS, LesionHead, smooth
from hmc_fast.study.lesion_attention import attended_features, fit_attention
from hmc_fast.training.features import FilmFeatures, read_features
from hmc_fast.training.lesion_fit import (
    LESION_STAGES,
    PENALTY,
    RING,
    FilmPositions,
    circle_distance,
    film_positions,
    film_scores,
    fit_lesion_head,
    labelled_positions,
)

TASK = TASKS["malignant"]
INNER_FOLDS = 4
ATTENTION = ("none", "breast", "breasts")


@dataclass(frozen=True)
class Cohort:
    """Films, their classes in the task ``malignant``, and their cached features.

    ``files`` come from :func:`hmc_fast.training.features.cache_features`, ``channels`` are those of
    C3 and C4.
    """

    films: tuple[Film, ...]
    labels: tuple[int, ...]
    files: tuple[Path, ...]
    channels: tuple[int, int]

    @property
    def patients(self) -> tuple[str, ...]:
        return tuple(film.patient_id for film in self.films)

    @property
    def mates(self) -> tuple[int, ...]:
        """For each film the number of one of the other breast in the same view, or its own."""
        at = {(film.patient_id, film.view, film.side): i for i, film in enumerate(self.films)}
        return tuple(
            at.get((film.patient_id, film.view, OTHER_SIDE.get(film.side or "")), i)
            for i, film in enumerate(self.films)
        )

    def subset(self, index: Sequence[int]) -> "Cohort":
        """Some of the films, in the order of ``index``."""
        return Cohort(
            tuple(self.films[i] for i in index),
            tuple(self.labels[i] for i in index),
            tuple(self.files[i] for i in index),
            self.channels,
        )


@dataclass(frozen=True)
class LesionRecipe:
    """One way from features to a film's score.

    ``stages`` are those that the head is fitted on, ``readout`` is one of :data:`READOUTS`;
    ``bilateral`` compares a film with the other breast. Without ``circles`` the head is fitted to
    labels of whole films; with ``calcification`` its third map counts in the score too.
    ``attention``, one of :data:`ATTENTION`, lets cells attend to their breast or to both breasts,
    see :mod:`hmc_fast.study.lesion_attention`.
    """

    stages: tuple[str, ...] = LESION_STAGES
    readout: str = "maximum"
    bilateral: bool = True
    circles: bool = True
    calcification: bool = False
    attention: str = "none"


RECIPES = tuple(
    LesionRecipe(stages, readout, bilateral)
    for stages, readout, bilateral in product(
        (LESION_STAGES, ("C4",), ("C3",)), READOUTS, (True, False)
    )
)
"""What a nested choice is made among; the first is the fixed recipe."""
SCORED_RECIPES = (*RECIPES, LesionRecipe(circles=False), LesionRecipe(calcification=True))
"""Those, and two that only tell what a part of the fixed one is worth."""
ATTENTION_RECIPES = tuple(
    LesionRecipe(bilateral=bilateral, attention=attention)
    for attention, bilateral in product(ATTENTION[1:], (True, False))
)
"""What attention would be worth. Each takes a training by gradients in every fold."""


@dataclass(frozen=True)
class Pointing:
    """Where the malignant map of a film has its maximum, against the malignant circles.

    ``distance`` is that from the nearest circle's edge in pixels of the image, negative inside.
    ``chance_inside`` and ``chance_beside`` are the shares of the breast's cells in a circle, and in
    one or within :data:`hmc_fast.training.lesion_fit.RING` pixels of it.
    """

    distance: float
    chance_inside: float
    chance_beside: float


@dataclass(frozen=True)
class LesionStudy:
    """What heads say of films that they have not seen, in the order of the films given.

    ``own`` scores a film by itself, ``bilateral`` compares it with the other breast where
    ``compared`` says that there was one. A score is the margin of the logits ``[-v/2, v/2]``.
    ``pointing`` is None for films without a malignant circle. ``left_out`` names the films that no
    fit could learn from, see :func:`film_positions`.
    """

    own: Predictions
    bilateral: Predictions
    compared: NDArray[np.bool_]
    pointing: tuple[Pointing | None, ...]
    left_out: tuple[str, ...]


@dataclass(frozen=True)
class NestedFold:
    """A fold's held-out films, scored by the recipe that did best within its training films.

    ``inner_auc`` is that recipe's there. Scores are in standard deviations of its inner scores, so
    that those of folds with different recipes can be pooled.
    """

    predictions: Predictions
    recipe: LesionRecipe
    inner_auc: float


def training_positions(
    cohort: Cohort, seed: int = 0, *, circles: bool = True
) -> list[FilmPositions | None]:
    """The examples of every film; ``seed`` draws the background.

    See :func:`film_positions`, and :func:`labelled_positions` for those without ``circles``.
    """
    draw = film_positions if circles else labelled_positions
    return [
        draw(read_features(file), film, seed)
        for film, file in zip(cohort.films, cohort.files, strict=True)
    ]


def cross_validate_lesion_head(
    cohort: Cohort,
    folds: Folds,
    *,
    penalty: float = PENALTY,
    seed: int = 0,
    on_fold: Callable[[int], object] = lambda fold: None,
) -> LesionStudy:
    """Fit a head in every fold by the fixed recipe and score the films that it has not seen.

    Args:
        cohort: at least one malignant lesion with a circle among the training films of every fold.
        folds: about the same films.
        penalty: see :data:`hmc_fast.training.lesion_fit.PENALTY`.
        seed: of the background positions.
        on_fold: called with each finished fold.

    Raises:
        UserError: a file is damaged, the folds are about other films, or a fold's training films
            hold no malignant lesion with a circle.
    """
    positions = training_positions(cohort, seed)
    recipe = RECIPES[0]
    scores = np.zeros(len(cohort.films), np.float64)
    fold_of = np.zeros(len(cohort.films), np.int64)
    pointing: list[Pointing | None] = [None] * len(cohort.films)
    for fold in range(folds.count):
        training, held_out = folds.split(list(cohort.films), fold)
        usable = [film for index in training if (film := positions[index]) is not None]
        head = fit_lesion_head(usable, *cohort.channels, penalty, recipe.stages)
        for index in held_out:
            features = read_features(cohort.files[index])
            scores[index] = film_scores(head, features, [recipe.readout])[recipe.readout]
            pointing[index] = point(head, features, cohort.films[index])
        fold_of[held_out] = fold
        on_fold(fold)
    own = _predictions(cohort, fold_of, scores)
    compared = compare_films(scores, cohort.films)
    left_out = tuple(
        film.sample_id for film, p in zip(cohort.films, positions, strict=True) if p is None
    )
    bilateral = replace(own, logits=margin_logits(compared.scores))
    return LesionStudy(own, bilateral, compared.compared, tuple(pointing), left_out)


def recipe_scores(
    cohort: Cohort,
    folds: Folds,
    recipes: Sequence[LesionRecipe] = SCORED_RECIPES,
    *,
    penalty: float = PENALTY,
    seed: int = 0,
    on_fold: Callable[[int], object] = lambda fold: None,
) -> dict[LesionRecipe, NDArray[np.float64]]:
    """The scores ``[films]`` that every one of ``recipes`` gives to held-out films.

    Each fold's heads are fitted to its training films. Other arguments as in
    :func:`cross_validate_lesion_head`.
    """
    scores = {recipe: np.zeros(len(cohort.films)) for recipe in recipes}
    positions = {c: training_positions(cohort, seed, circles=c) for c in (True, False)}
    for fold in range(folds.count):
        training, held_out = folds.split(list(cohort.films), fold)
        for circles, drawn in positions.items():
            alike = [recipe for recipe in recipes if recipe.circles == circles]
            parts = _scores(cohort, drawn, training, held_out, alike, penalty, seed)
            for recipe, values in parts.items():
                scores[recipe][held_out] = values
        on_fold(fold)
    return scores


def nested_fold(
    cohort: Cohort,
    positions: Sequence[FilmPositions | None],
    folds: Folds,
    fold: int,
    *,
    recipes: Sequence[LesionRecipe] = RECIPES,
    inner_folds: int = INNER_FOLDS,
    penalty: float = PENALTY,
) -> NestedFold:
    """Choose a recipe by inner folds of the training films, then score the held-out ones with it.

    Args:
        cohort: all films of the study.
        positions: by :func:`training_positions`.
        folds: the outer folds; their seed draws the inner ones.
        fold: of ``folds``.
        recipes: declared before anything was seen; the first of equals is chosen.
        inner_folds: how many.
        penalty: as in :func:`cross_validate_lesion_head`.
    """
    training, held_out = folds.split(list(cohort.films), fold)
    inside = cohort.subset(training)
    known = [positions[index] for index in training]
    inner = make_folds(list(inside.films), list(inside.labels), TASK, inner_folds, folds.seed)
    scores = {recipe: np.zeros(len(training)) for recipe in recipes}
    inner_fold_of = np.zeros(len(training), np.int64)
    for inner_fold in range(inner_folds):
        fitted, left = inner.split(list(inside.films), inner_fold)
        parts = _scores(inside, known, fitted, left, recipes, penalty, folds.seed)
        for recipe, values in parts.items():
            scores[recipe][left] = values
        inner_fold_of[left] = inner_fold
    aucs = [_auc(_predictions(inside, inner_fold_of, scores[recipe])) for recipe in recipes]
    best = int(np.argmax(aucs))
    chosen = scores[recipes[best]]
    outer = _scores(cohort, positions, training, held_out, [recipes[best]], penalty, folds.seed)
    standard = (outer[recipes[best]] - chosen.mean()) / chosen.std()
    outside = cohort.subset(held_out)
    predictions = _predictions(outside, np.full(len(held_out), fold), standard)
    return NestedFold(predictions, recipes[best], aucs[best])


@torch.inference_mode()
def point(head: LesionHead, features: FilmFeatures, film: Film) -> Pointing | None:
    """Where the smoothed malignant map points, or None for a film without a malignant circle."""
    malignant = [finding for finding in film.findings if finding.severity == "malignant"]
    distances = [circle_distance(finding, features.frame) for finding in malignant]
    located = [distance for distance in distances if distance is not None]
    if not located:
        return None
    maps = smooth(head.maps(features.cells[None].float())[:, :1], head.smoothing)[0, 0]
    peak = int(maps.masked_fill(~features.breast, -torch.inf).argmax())
    distance = np.min(located, 0)
    breast = distance[features.breast.numpy()]
    return Pointing(
        float(distance.flat[peak]), float(np.mean(breast <= 0)), float(np.mean(breast <= RING))
    )


def _scores(
    cohort: Cohort,
    positions: Sequence[FilmPositions | None],
    training: Sequence[int],
    held_out: Sequence[int],
    recipes: Sequence[LesionRecipe],
    penalty: float,
    seed: int,
) -> dict[LesionRecipe, NDArray[np.float64]]:
    """Every recipe's scores of the held-out films, by heads fitted to the training films.

    The recipes agree in their ``circles``, those of ``positions``.
    """
    known = [positions[index] for index in training]
    usable = [film for film in known if film is not None]
    inside, outside = cohort.subset(training), cohort.subset(held_out)
    result = {}
    for stages in dict.fromkeys(recipe.stages for recipe in recipes):
        head = fit_lesion_head(usable, *cohort.channels, penalty, stages)
        for attention in dict.fromkeys(r.attention for r in recipes if r.stages == stages):
            alike = [r for r in recipes if (r.stages, r.attention) == (stages, attention)]
            features: Iterator[FilmFeatures]
            if attention == "none":
                features = map(read_features, outside.files)
            else:
                features = _attended(head, inside, known, outside, attention, seed)
            own = list(map(partial(_own_scores, head, alike), features))
            for recipe in alike:
                scores = np.array([film[recipe.readout, recipe.calcification] for film in own])
                if recipe.bilateral:
                    scores = compare_films(scores, outside.films).scores
                result[recipe] = scores
    return result


def _own_scores(
    head: LesionHead, recipes: Sequence[LesionRecipe], features: FilmFeatures
) -> dict[tuple[str, bool], float]:
    """A film's score by itself, for every readout of the recipes and either set of maps."""
    readouts = list(dict.fromkeys(recipe.readout for recipe in recipes))
    result = {}
    for calcification in dict.fromkeys(recipe.calcification for recipe in recipes):
        counted = len(LESION_MAPS) if calcification else COUNTED_MAPS
        for readout, score in film_scores(head, features, readouts, counted).items():
            result[readout, calcification] = score
    return result


def _attended(
    head: LesionHead,
    inside: Cohort,
    positions: Sequence[FilmPositions | None],
    outside: Cohort,
    attention: str,
    seed: int,
) -> Iterator[FilmFeatures]:
    """The features of ``outside`` after attention that was fitted to ``inside``."""
    block = fit_attention(
        head, positions, inside.files, inside.mates, both=attention == "breasts", seed=seed
    )
    mates = outside.mates
    return (
        attended_features(block, outside.files, mates, index) for index in range(len(outside.files))
    )


def _predictions(
    cohort: Cohort, fold_of: NDArray[np.int64], scores: NDArray[np.float64]
) -> Predictions:
    return Predictions(
        tuple(film.sample_id for film in cohort.films),
        cohort.patients,
        tuple(fold_of.tolist()),
        np.asarray(cohort.labels, np.int64),
        margin_logits(scores),
        TASK.class_names,
    )


def _auc(predictions: Predictions) -> float:
    auc = predictions.metrics()["auc_roc"]
    assert auc is not None  # folds hold both classes
    return auc
