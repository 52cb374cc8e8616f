"""Sensitivity at a specificity and average precision against scikit-learn, resample by resample."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_curve

from hmc_fast import UserError
from hmc_fast.evaluation.bootstrap import RESAMPLES, resampled_weights
from hmc_fast.evaluation.operating import (
    choose_operating_point,
    resampled_average_precision,
    resampled_sensitivity,
)

PATIENTS = [f"p{film // 2}" for film in range(60)]


@pytest.mark.parametrize("decimals", [1, 9])
def test_figures_are_those_of_scikit_learn(decimals: int) -> None:
    rng = np.random.default_rng(decimals)
    labels = rng.integers(0, 2, 60)
    scores = np.round(rng.normal(size=60) + labels, decimals)  # one decimal makes ties
    sensitivity = resampled_sensitivity(scores, labels, PATIENTS)
    precision = resampled_average_precision(scores, labels, PATIENTS)
    assert sensitivity.shape == precision.shape == (1 + RESAMPLES,)
    for row, weights in enumerate(resampled_weights(PATIENTS)[:20]):
        drawn = {"sample_weight": weights}
        false_positives, hits, _ = roc_curve(labels, scores, drop_intermediate=False, **drawn)
        assert sensitivity[row] == pytest.approx(hits[false_positives <= 0.1 + 1e-12].max())
        assert precision[row] == pytest.approx(average_precision_score(labels, scores, **drawn))


def test_a_missing_class_has_no_figure() -> None:
    scores, labels = np.arange(60.0), np.zeros(60, np.int64)
    assert np.isnan(resampled_sensitivity(scores, labels, PATIENTS)).all()
    assert np.isnan(resampled_average_precision(scores, labels, PATIENTS)).all()


@pytest.mark.parametrize("specificity", [0.5, 0.8, 0.9, 0.99])
@pytest.mark.parametrize("decimals", [1, 9])
def test_the_chosen_point_is_the_most_sensitive_of_scikit_learns_curve(
    specificity: float, decimals: int
) -> None:
    rng = np.random.default_rng(decimals)
    labels = rng.integers(0, 2, 60)
    scores = np.round(1 / (1 + np.exp(-rng.normal(size=60) - labels)), decimals)
    point = choose_operating_point(scores, labels, specificity)
    false_positives, hits, _ = roc_curve(labels, scores, drop_intermediate=False)
    assert point.sensitivity == pytest.approx(hits[1 - false_positives >= specificity].max())
    called = scores >= point.threshold
    assert point.specificity == pytest.approx(1 - called[labels == 0].mean())
    assert point.sensitivity == pytest.approx(called[labels == 1].mean())
    assert np.abs(scores - point.threshold).min() > 1e-12


def test_saturated_scores_have_no_operating_point() -> None:
    with pytest.raises(UserError, match="no threshold has specificity"):
        choose_operating_point(np.array([1.0, 1.0, 1.0]), np.array([0, 1, 0]), 0.9)
