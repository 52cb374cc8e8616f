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
    scores: NDArray[np.float64] = np.asarray(probabilities, np.float64)
    labels = np.asarray(labels)
    classes = scores.shape[1]
    if len(np.unique(labels)) < classes:
        return Interval(None, None, None)
    _, patient_index = np.unique(np.asarray(patients), return_inverse=True)
    n_patients = int(patient_index.max()) + 1
    rng = np.random.default_rng(seed)
    draws = rng.multinomial(n_patients, np.full(n_patients, 1 / n_patients), size=RESAMPLES)
    counts = np.concatenate([np.ones((1, n_patients), dtype=draws.dtype), draws])
    weights = counts[:, patient_index].astype(np.float64)
    positives = [1] if classes == 2 else range(classes)
    aucs = np.mean([_weighted_auc(scores[:, c], labels == c, weights) for c in positives], 0)
    resampled = aucs[1:][np.isfinite(aucs[1:])]
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(resampled, [tail, 1 - tail])
    return Interval(float(aucs[0]), float(low), float(high))


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
