"""How far probabilities can be taken at their word, before and after temperature scaling."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from torchmetrics.functional.classification import multiclass_calibration_error

from hmc_fast.evaluation.predictions import Predictions, pool

ECE_BINS = 15
LOG_TEMPERATURE_RANGE = (-5.0, 5.0)


@dataclass(frozen=True)
class Calibration:
    """Brier score and expected calibration error, raw and after temperature scaling.

    ``temperatures`` has one per fold, fitted on the predictions of the other folds.
    """

    brier: float
    ece: float
    temperatures: list[float]
    scaled_brier: float
    scaled_ece: float


def calibration(predictions: Predictions) -> Calibration:
    """Calibration of out-of-fold predictions.

    A fold's temperature (Guo et al. 2017) is fitted on the out-of-fold predictions of the other
    folds, so no label of the fold itself enters it. With one fold there is nothing to fit on, and
    the temperature stays 1.
    """
    parts = predictions.by_fold()
    temperatures = []
    scaled = []
    for number, part in enumerate(parts):
        others = [other for i, other in enumerate(parts) if i != number]
        temperature = fit_temperature(pool(others)) if others else 1.0
        temperatures.append(temperature)
        scaled.append(replace(part, logits=part.logits / temperature))
    after = pool(scaled)
    return Calibration(
        brier_score(predictions.probabilities, predictions.labels),
        expected_calibration_error(predictions.probabilities, predictions.labels),
        temperatures,
        brier_score(after.probabilities, after.labels),
        expected_calibration_error(after.probabilities, after.labels),
    )


def mean_calibration(repeats: Sequence[Predictions]) -> Calibration:
    """The mean over repeats; temperatures of all of them."""
    each = [calibration(predictions) for predictions in repeats]
    return Calibration(
        float(np.mean([c.brier for c in each])),
        float(np.mean([c.ece for c in each])),
        [temperature for c in each for temperature in c.temperatures],
        float(np.mean([c.scaled_brier for c in each])),
        float(np.mean([c.scaled_ece for c in each])),
    )


def brier_score(probabilities: NDArray[np.floating], labels: NDArray[np.integer]) -> float:
    """Brier (1950): mean squared error of class 1's probability with two classes, else of all."""
    truth = np.eye(probabilities.shape[1])[labels]
    squares = ((probabilities - truth) ** 2).sum(1)
    return float(squares.mean() / (2 if probabilities.shape[1] == 2 else 1))


def expected_calibration_error(
    probabilities: NDArray[np.floating], labels: NDArray[np.integer]
) -> float:
    """ECE of the predicted class over 15 equal-width bins (Naeini et al. 2015)."""
    error = multiclass_calibration_error(
        torch.as_tensor(np.asarray(probabilities, np.float64)),
        torch.as_tensor(np.asarray(labels, np.int64)),
        num_classes=probabilities.shape[1],
        n_bins=ECE_BINS,
    )
    return float(error)


def fit_temperature(predictions: Predictions) -> float:
    """The temperature that minimises the negative log-likelihood of the labels."""
    rows = np.arange(len(predictions.labels))

    def negative_log_likelihood(log_temperature: float) -> float:
        scaled = log_softmax(predictions.logits / np.exp(log_temperature), axis=1)
        return float(-scaled[rows, predictions.labels].mean())

    best = minimize_scalar(negative_log_likelihood, bounds=LOG_TEMPERATURE_RANGE, method="bounded")
    return float(np.exp(best.x))
