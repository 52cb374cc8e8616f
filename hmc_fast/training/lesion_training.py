"""A model's lesion head from training films alone: cached features, the fit, and its calibration.

The fit's own films look better to it than new ones do, so that its score becomes a probability by
films that inner folds of the training films have held out (Platt 1999).
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from scipy.special import expit
from sklearn.linear_model import LogisticRegression

from hmc_fast.checkpoint import OperatingPoint
from hmc_fast.data import Film, FilmCache, make_folds
from hmc_fast.data.tasks import Task
from hmc_fast.errors import UserError
from hmc_fast.evaluation.bilateral import compare_films
from hmc_fast.evaluation.operating import choose_operating_point
from hmc_fast.models import HMCNet
from hmc_fast.models.lesion_head import LesionHead, black_level
from hmc_fast.training.features import cache_features, read_features
from hmc_fast.training.lesion_fit import (
    FilmPositions,
    film_positions,
    film_scores,
    fit_lesion_head,
)

CALIBRATION_FOLDS = 3


@dataclass(frozen=True)
class LesionFit:
    """What became of a fit: the films that taught it nothing, and how the score is calibrated.

    ``left_out`` are films with a lesion that has no circle in the breast. The margin of class 1 is
    ``slope`` times the film's score plus ``offset``. ``operating_point`` is chosen on the inner
    folds' scores of the training films, where one was asked for.
    """

    left_out: tuple[str, ...]
    slope: float
    offset: float
    operating_point: OperatingPoint | None = None


def train_lesion_head(
    model: HMCNet,
    films: Sequence[Film],
    labels: Sequence[int],
    task: Task,
    images: FilmCache,
    folder: Path,
    *,
    seed: int,
    bilateral: bool,
    balance: bool,
    at_specificity: float | None = None,
    on_film: Callable[[int], object] = lambda count: None,
) -> LesionFit:
    """Fit the lesion head of ``model`` to the circles of ``films``, in place.

    Args:
        model: with a lesion head and attention that has learned nothing yet.
        films: of the training set.
        labels: their classes.
        task: of two classes.
        images: where prepared films come from.
        folder: of the features.
        seed: of the background positions and the inner folds.
        bilateral: calibrate scores that are compared with the other breast.
        balance: calibrate as if both classes were equally frequent.
        at_specificity: choose the operating point of this specificity.
        on_film: called with 1 for every film whose features are ready.

    Raises:
        UserError: no training film has a malignant lesion with a circle, or too few patients have;
            otherwise as :func:`cache_features`.
    """
    head = model.lesion_head
    assert head is not None
    channels = model.stage_channels["C3"], model.stage_channels["C4"]
    paths = [film.path for film in films]
    files = cache_features(paths, model, images, folder, on_film=on_film)
    positions = [
        film_positions(read_features(file), film, seed)
        for film, file in zip(films, files, strict=True)
    ]
    fitted = _fit(positions, channels)
    scores = _held_out_scores(films, labels, task, files, positions, channels, seed)
    if bilateral:
        scores = compare_films(scores, films).scores
    slope, offset = calibrate(scores, np.asarray(labels), balance=balance)
    fitted.slope.fill_(slope)
    fitted.offset.fill_(offset)
    preprocessing = images.preprocessing
    fitted.black.fill_(black_level(preprocessing.mean[0], preprocessing.std[0]))
    head.load_state_dict(fitted.state_dict())
    point = None
    if at_specificity is not None:
        probabilities = expit(slope * scores + offset)
        point = choose_operating_point(probabilities, np.asarray(labels), at_specificity)
    left_out = tuple(f.sample_id for f, p in zip(films, positions, strict=True) if p is None)
    return LesionFit(left_out, slope, offset, point)


def calibrate(
    scores: NDArray[np.float64], labels: NDArray[np.integer], *, balance: bool
) -> tuple[float, float]:
    """Slope and offset that turn scores ``[films]`` into margins, by logistic regression.

    Where larger scores do not speak for class 1, scores are standardised instead, so that their
    order stays.
    """
    weight = "balanced" if balance else None
    spread = float(scores.std()) or 1.0
    standard = (scores - scores.mean()) / spread
    model = LogisticRegression(C=np.inf, class_weight=weight).fit(standard[:, None], labels)
    slope, offset = float(model.coef_[0, 0]), float(model.intercept_[0])
    if slope <= 0:
        slope, offset = 1.0, 0.0
    return slope / spread, offset - slope * float(scores.mean()) / spread


def _fit(positions: Sequence[FilmPositions | None], channels: tuple[int, int]) -> LesionHead:
    return fit_lesion_head([film for film in positions if film is not None], *channels)


def _held_out_scores(
    films: Sequence[Film],
    labels: Sequence[int],
    task: Task,
    files: Sequence[Path],
    positions: Sequence[FilmPositions | None],
    channels: tuple[int, int],
    seed: int,
) -> NDArray[np.float64]:
    """The score of every training film by a head that was fitted without its patient."""
    try:
        inner = make_folds(list(films), list(labels), task, CALIBRATION_FOLDS, seed)
    except UserError as error:
        raise UserError(f"the lesion head cannot be calibrated: {error}") from None
    scores = np.zeros(len(films))
    for fold in range(inner.count):
        fitted, held_out = inner.split(list(films), fold)
        head = _fit([positions[index] for index in fitted], channels)
        for index in held_out:
            features = read_features(files[index])
            scores[index] = film_scores(head, features, [head.readout])[head.readout]
    return scores
