"""The six metrics of the HMC-Net abstract, for one set of predictions and over folds."""

import warnings
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray

METRIC_NAMES = ("accuracy", "precision", "recall", "f1", "auc_roc", "specificity")


def classification_metrics(
    probabilities: NDArray[np.floating], labels: NDArray[np.integer]
) -> dict[str, float | None]:
    """Accuracy, precision, recall, F1, AUC-ROC and specificity.

    With two classes class 1 is positive and the decision threshold is 0.5; with more the largest
    probability decides, and every metric but accuracy is the mean over classes (AUC one-vs-rest).

    Args:
        probabilities: ``[films, classes]``.
        labels: ``[films]``.

    Returns:
        A value per name of :data:`METRIC_NAMES`; None where a metric is undefined (AUC-ROC where a
        class is absent).
    """
    from torchmetrics.functional import classification  # slow to import

    scores = torch.as_tensor(np.asarray(probabilities, dtype=np.float64))
    target = torch.as_tensor(np.asarray(labels, dtype=np.int64))
    classes = scores.shape[1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # an absent class is reported as None below
        if classes == 2:
            positive = scores[:, 1]
            values = {
                "accuracy": classification.binary_accuracy(positive, target),
                "precision": classification.binary_precision(positive, target),
                "recall": classification.binary_recall(positive, target),
                "f1": classification.binary_f1_score(positive, target),
                "auc_roc": classification.binary_auroc(positive, target),
                "specificity": classification.binary_specificity(positive, target),
            }
        else:
            values = {
                "accuracy": classification.multiclass_accuracy(
                    scores, target, classes, average="micro"
                ),
                "precision": classification.multiclass_precision(scores, target, classes),
                "recall": classification.multiclass_recall(scores, target, classes),
                "f1": classification.multiclass_f1_score(scores, target, classes),
                "auc_roc": classification.multiclass_auroc(scores, target, classes),
                "specificity": classification.multiclass_specificity(scores, target, classes),
            }
    result: dict[str, float | None] = {name: float(values[name]) for name in METRIC_NAMES}
    if len(torch.unique(target)) < classes:
        result["auc_roc"] = None
    return result


def mean_and_std(
    folds: Sequence[dict[str, float | None]],
) -> dict[str, tuple[float, float] | None]:
    """Mean and sample standard deviation over folds per metric; None where a fold lacks a value."""
    summary: dict[str, tuple[float, float] | None] = {}
    for name in METRIC_NAMES:
        values = [fold[name] for fold in folds]
        known = [value for value in values if value is not None]
        if len(known) < len(values) or not known:
            summary[name] = None
        else:
            spread = float(np.std(known, ddof=1)) if len(known) > 1 else 0.0
            summary[name] = (float(np.mean(known)), spread)
    return summary
