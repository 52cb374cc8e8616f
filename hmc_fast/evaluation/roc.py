"""The ROC curve with a band that respects that a patient's films belong together."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hmc_fast.evaluation.bootstrap import CONFIDENCE, resampled_weights
from hmc_fast.evaluation.predictions import Predictions

BAND_RESAMPLES = 500
GRID = 101


@dataclass(frozen=True)
class RocBand:
    """Sensitivity, and its pointwise 95 % band, at evenly spaced false-positive rates."""

    false_positive_rate: NDArray[np.float64]
    sensitivity: NDArray[np.float64]
    low: NDArray[np.float64]
    high: NDArray[np.float64]


def roc_band(predictions: Predictions) -> RocBand | None:
    """ROC of the last class against the others, with a patient-cluster bootstrap band.

    None where one side has no film.
    """
    positive = predictions.labels == len(predictions.class_names) - 1
    if positive.all() or not positive.any():
        return None
    scores = predictions.probabilities[:, -1]
    order = np.argsort(-scores, kind="stable")
    weights = resampled_weights(predictions.patients, resamples=BAND_RESAMPLES)[:, order]
    last_of_tie = np.flatnonzero(np.append(np.diff(scores[order]) != 0, True))
    hits, alarms = weights * positive[order], weights * ~positive[order]
    usable = (hits.sum(1) > 0) & (alarms.sum(1) > 0)
    grid = np.linspace(0, 1, GRID)
    curves = []
    for hit, alarm in zip(hits[usable], alarms[usable], strict=True):
        sensitivity = np.concatenate([[0], np.cumsum(hit)[last_of_tie]]) / hit.sum()
        false_alarms = np.concatenate([[0], np.cumsum(alarm)[last_of_tie]]) / alarm.sum()
        curves.append(np.interp(grid, false_alarms, sensitivity))
    tail = (1 - CONFIDENCE) / 2
    low, high = np.quantile(curves[1:], [tail, 1 - tail], axis=0)
    return RocBand(grid, curves[0], low, high)
