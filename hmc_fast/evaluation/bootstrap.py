"""Confidence intervals that respect that a patient's films belong together."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
CONFIDENCE = 0.95


@dataclass(frozen=True)
class Interval:
    """A point estimate and its bootstrap interval; all None where the estimate is undefined."""

    value: float | None
    low: float | None
    high: float | None

    def __str__(self) -> str:
        if self.value is None or self.low is None or self.high is None:
            return "undefined"
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def mean_interval(values: Sequence[float], patients: Sequence[str], seed: int = 0) -> Interval:
    """The mean over films with its patient-cluster percentile-bootstrap 95 % interval.

    Undefined without films; ``values`` and ``patients`` belong to the same films.
    """
    if not values:
        return Interval(None, None, None)
    _, index = np.unique(np.asarray(patients), return_inverse=True)
    count = int(index.max()) + 1
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(count, np.full(count, 1 / count), size=RESAMPLES)[:, index]
    means = draws @ np.asarray(values, np.float64) / draws.sum(1)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(means, [tail, 1 - tail])
    return Interval(float(np.mean(values)), float(low), float(high))


def auc_interval(
    probabilities: NDArray[np.floating],
    labels: NDArray[np.integer],
    patients: Sequence[str],
    seed: int = 0,
) -> Interval:
    """AUC-ROC with its patient-cluster percentile-bootstrap 95 % interval.

    Whole patients are drawn with replacement (Field & Welsh 2007), 2000 times; resamples in which a
    class is absent are left out. With more than two classes it is the mean one-vs-rest AUC.

    Args:
        probabilities: ``[films, classes]``.
        labels: ``[films]``.
        patients: the patient of each film.
        seed: of the resampling.
    """
    return percentile_interval(resampled_auc(probabilities, labels, patients, seed))


def resampled_auc(
    probabilities: NDArray[np.floating],
    labels: NDArray[np.integer],
    patients: Sequence[str],
    seed: int = 0,
) -> NDArray[np.float64]:
    """The AUC as it is, then of every resample of patients: ``[1 + 2000]``.

    The same patients are drawn for the same seed whatever the predictions and the order of the
    films, so that differences and means of results are paired. NaN where a class is absent.
    """
    scores: NDArray[np.float64] = np.asarray(probabilities, np.float64)
    labels = np.asarray(labels)
    classes = scores.shape[1]
    if len(np.unique(labels)) < classes:
        return np.full(1 + RESAMPLES, np.nan)
    weights = resampled_weights(patients, seed)
    positives = [1] if classes == 2 else range(classes)
    return np.asarray(
        np.mean([_weighted_auc(scores[:, c], labels == c, weights) for c in positives], 0)
    )


def resampled_weights(
    patients: Sequence[str], seed: int = 0, resamples: int = RESAMPLES
) -> NDArray[np.float64]:
    """How often each film counts: once, then in every resample of patients ``[1 + n, films]``."""
    _, patient_index = np.unique(np.asarray(patients), return_inverse=True)
    n_patients = int(patient_index.max()) + 1
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(n_patients, np.full(n_patients, 1 / n_patients), size=resamples)
    counts = np.concatenate([np.ones((1, n_patients), dtype=draws.dtype), draws])
    return np.asarray(counts[:, patient_index].astype(np.float64))


def percentile_interval(values: NDArray[np.float64]) -> Interval:
    """The first value, and the central 95 % of the finite others; undefined for a first of NaN."""
    resampled = values[1:][np.isfinite(values[1:])]
    if not np.isfinite(values[0]) or not len(resampled):
        return Interval(None, None, None)
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return Interval(float(values[0]), float(low), float(high))


def _weighted_auc(
    scores: NDArray[np.float64], positive: NDArray[np.bool_], weights: NDArray[np.float64]
) -> NDArray[np.float64]:
    """AUC for each row of ``weights [resamples, films]``; NaN where a class has no weight."""
    above = np.sign(scores[positive][:, None] - scores[~positive][None, :]) / 2 + 0.5
    positive_weights, negative_weights = weights[:, positive], weights[:, ~positive]
    pairs = positive_weights.sum(1) * negative_weights.sum(1)
    wins = ((positive_weights @ above) * negative_weights).sum(1)
    with np.errstate(invalid="ignore"):
        return np.asarray(wins / np.where(pairs > 0, pairs, np.nan))
