"""Calibration, ensembles and ROC bands against independent implementations and properties."""

from dataclasses import replace

import numpy as np
import pytest
from sklearn import metrics as sk

from hmc_fast import UserError
from hmc_fast.evaluation import Predictions, auc_interval, ensemble, mean_auc_interval
from hmc_fast.evaluation.calibration import (
    brier_score,
    calibration,
    expected_calibration_error,
    fit_temperature,
)
from hmc_fast.evaluation.roc import roc_band


def draw(films: int = 400, folds: int = 4, scale: float = 1.0, seed: int = 0) -> Predictions:
    """Labels drawn from the softmax of the unscaled logits: calibrated at scale 1."""
    rng = np.random.default_rng(seed)
    logits = np.stack([np.zeros(films), rng.normal(size=films) * 1.5], 1)
    labels = (rng.random(films) < 1 / (1 + np.exp(-logits[:, 1]))).astype(np.int64)
    return Predictions(
        tuple(f"f{i}" for i in range(films)),
        tuple(f"p{i // 2}" for i in range(films)),
        tuple(i // 2 % folds for i in range(films)),
        labels,
        logits * scale,
        ("rest", "malignant"),
    )


def test_brier_agrees_with_scikit_learn() -> None:
    predictions = draw()
    ours = brier_score(predictions.probabilities, predictions.labels)
    assert ours == pytest.approx(
        sk.brier_score_loss(predictions.labels, predictions.probabilities[:, 1])
    )


def test_ece_agrees_with_its_definition() -> None:
    predictions = draw(scale=3)
    confidence = predictions.probabilities.max(1)
    right = predictions.decisions == predictions.labels
    bins = np.minimum((confidence * 15).astype(int), 14)
    expected = sum(
        abs(right[bins == b].mean() - confidence[bins == b].mean()) * (bins == b).mean()
        for b in np.unique(bins)
    )
    assert expected_calibration_error(
        predictions.probabilities, predictions.labels
    ) == pytest.approx(expected, abs=1e-6)


def test_the_temperature_undoes_a_scale() -> None:
    assert fit_temperature(draw(20_000)) == pytest.approx(1, abs=0.05)
    assert fit_temperature(draw(20_000, scale=4)) == pytest.approx(4, abs=0.2)


def test_a_fold_s_temperature_does_not_see_its_labels() -> None:
    predictions = draw(scale=4)
    result = calibration(predictions)
    assert result.scaled_ece < result.ece
    assert result.scaled_brier < result.brier
    first = np.asarray(predictions.folds) == 0
    spoiled = replace(
        predictions, labels=np.where(first, 1 - predictions.labels, predictions.labels)
    )
    again = calibration(spoiled)
    assert again.temperatures[0] == result.temperatures[0]
    assert again.temperatures[1] != result.temperatures[1]


def test_one_fold_leaves_the_temperature_alone() -> None:
    result = calibration(draw(folds=1))
    assert result.temperatures == [1]
    assert result.scaled_brier == pytest.approx(result.brier)


def test_an_ensemble_averages_probabilities_film_by_film() -> None:
    first, second = draw(seed=0), draw(seed=0, scale=2)
    order = np.random.default_rng(0).permutation(len(first.films))
    shuffled = second._subset(order)
    together = ensemble([first, shuffled])
    np.testing.assert_allclose(
        together.probabilities, (first.probabilities + second.probabilities) / 2
    )
    with pytest.raises(UserError, match="same films"):
        ensemble([first, second._subset(order[1:])])
    with pytest.raises(UserError, match="agree on the films' labels"):
        ensemble([first, replace(second, labels=1 - second.labels)])


def test_the_mean_auc_draws_the_same_patients_for_every_repeat() -> None:
    predictions = draw(80)
    twice = mean_auc_interval([predictions, predictions])
    once = auc_interval(predictions.probabilities, predictions.labels, predictions.patients)
    assert (twice.value, twice.low, twice.high) == pytest.approx((once.value, once.low, once.high))


def test_the_roc_agrees_with_scikit_learn_and_lies_in_its_band() -> None:
    predictions = replace(draw(150), logits=draw(150).logits.round(1))
    band = roc_band(predictions)
    assert band is not None
    false_alarms, sensitivity, _ = sk.roc_curve(
        predictions.labels, predictions.probabilities[:, 1], drop_intermediate=False
    )
    expected = np.interp(band.false_positive_rate, false_alarms, sensitivity)
    np.testing.assert_allclose(band.sensitivity, expected, atol=1e-12)
    inside = (band.low <= band.sensitivity) & (band.sensitivity <= band.high)
    assert inside.mean() > 0.95
    assert roc_band(replace(predictions, labels=np.zeros(150, np.int64))) is None
