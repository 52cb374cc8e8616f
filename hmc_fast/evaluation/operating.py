"""Operating points: how one is chosen, and what a score is worth at one, resampled."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from hmc_fast.checkpoint import OperatingPoint
from hmc_fast.errors import UserError
from hmc_fast.evaluation.bootstrap import resampled_weights


def choose_operating_point(
    probabilities: NDArray[np.floating], labels: NDArray[np.integer], specificity: float
) -> OperatingPoint:
    """The most sensitive operating point with at least the specificity given.

    Its threshold lies midway between the smallest probability that is called positive and the
    largest that is not, so that rounding changes no film's side.

    Args:
        probabilities: ``[films]``, of class 1, of films that taught the model nothing.
        labels: ``[films]``, 0 and 1, both of which occur.
        specificity: 0…1.

    Raises :class:`UserError` where no threshold has it.
    """
    values, negative = np.asarray(probabilities, np.float64), np.asarray(labels) == 0
    levels = np.unique(np.concatenate([values, [0.0, 1.0]]))
    thresholds = np.append((levels[:-1] + levels[1:]) / 2, 1.0)
    groups = [np.sort(values[negative]), np.sort(values[~negative])]
    below = [np.searchsorted(group, thresholds) / len(group) for group in groups]
    holds = below[0] >= specificity - 1e-12
    if not holds.any():
        raise UserError(
            f"no threshold has specificity {specificity:g}: films without the finding have "
            "probability 1"
        )
    best = int(np.argmax(holds))  # sensitivity falls as the threshold grows
    return OperatingPoint(
        threshold=float(thresholds[best]),
        at_specificity=specificity,
        specificity=float(below[0][best]),
        sensitivity=float(1 - below[1][best]),
        films=len(labels),
    )


def resampled_sensitivity(
    scores: NDArray[np.floating],
    labels: NDArray[np.integer],
    patients: Sequence[str],
    specificity: float = 0.9,
) -> NDArray[np.float64]:
    """The largest sensitivity with at least the specificity given: ``[1 + 2000]``.

    As it is, then of every resample of patients, each with its own threshold; NaN where a class is
    absent.

    Args:
        scores: ``[films]``, large for class 1.
        labels: ``[films]``, 0 or 1.
        patients: the patient of each film.
        specificity: 0…1.
    """
    hits, alarms = _cumulated(scores, labels, patients)
    with np.errstate(invalid="ignore"):
        sensitivity, false_positives = hits / hits[:, -1:], alarms / alarms[:, -1:]
    allowed = false_positives <= 1 - specificity + 1e-12
    best = np.where(allowed, sensitivity, 0).max(1)
    return np.where((hits[:, -1] > 0) & (alarms[:, -1] > 0), best, np.nan)


def resampled_average_precision(
    scores: NDArray[np.floating], labels: NDArray[np.integer], patients: Sequence[str]
) -> NDArray[np.float64]:
    """Average precision, as :func:`resampled_sensitivity`; that of chance is the prevalence.

    The sum of precisions weighted by the gain in recall, as scikit-learn has it.
    """
    hits, alarms = _cumulated(scores, labels, patients)
    with np.errstate(invalid="ignore"):
        precision = np.nan_to_num(hits / (hits + alarms))
        recall = hits / hits[:, -1:]
    gains = np.diff(recall, axis=1, prepend=0)
    average = (gains * precision).sum(1)
    return np.where((hits[:, -1] > 0) & (alarms[:, -1] > 0), average, np.nan)


def _cumulated(
    scores: NDArray[np.floating], labels: NDArray[np.integer], patients: Sequence[str]
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """True and false positives at every distinct threshold, falling: ``[1 + 2000, thresholds]``."""
    order = np.argsort(-np.asarray(scores, np.float64), kind="stable")
    last_of_tie = np.flatnonzero(np.append(np.diff(np.asarray(scores)[order]) != 0, True))
    weights = resampled_weights(patients)[:, order]
    positive = np.asarray(labels)[order] == 1
    hits = np.cumsum(weights * positive, 1)[:, last_of_tie]
    alarms = np.cumsum(weights * ~positive, 1)[:, last_of_tie]
    return hits, alarms
