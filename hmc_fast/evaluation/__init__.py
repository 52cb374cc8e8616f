"""Predictions and what they are worth: metrics, intervals, tables."""

from hmc_fast.evaluation.bootstrap import Interval, auc_interval
from hmc_fast.evaluation.metrics import METRIC_NAMES, classification_metrics, mean_and_std
from hmc_fast.evaluation.predict import film_logits, predict_logits
from hmc_fast.evaluation.predictions import (
    Predictions,
    ensemble,
    mean_auc_interval,
    pool,
    read_predictions,
)

__all__ = [
    "METRIC_NAMES",
    "Interval",
    "Predictions",
    "auc_interval",
    "classification_metrics",
    "ensemble",
    "film_logits",
    "mean_and_std",
    "mean_auc_interval",
    "pool",
    "predict_logits",
    "read_predictions",
]
