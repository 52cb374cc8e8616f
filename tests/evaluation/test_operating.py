"""Sensitivity at a specificity and average precision against scikit-learn, resample by resample."""

import numpy as np
import pytest
from sklearn.metrics import average_precision_score, roc_curve

from hmc_fast.evaluation.bootstrap import RESAMPLES, resampled_weights
from hmc_fast.evaluation.operating import resampled_average_precision, resampled_sensitivity

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
