"""A comparison as plain JSON values, without the films' own predictions."""

from dataclasses import asdict
from typing import Any

from hmc_fast.study.compare import Comparison, Group, ModelResult


def comparison_json(comparison: Comparison) -> dict[str, Any]:
    """What a script wants of a report: every number of its tables."""
    return {
        "studies": [
            {"name": study.name, "settings": study.settings, "data": study.data}
            for study in comparison.studies
        ],
        "groups": [_group(group) for group in comparison.groups],
    }


def _group(group: Group) -> dict[str, Any]:
    return {
        "title": group.title,
        "protocol": group.protocol,
        "models": [_model(result) for result in group.results],
        "pairs": [asdict(pair) for pair in group.pairs],
        "friedman": {
            metric: {"none": test} if isinstance(test, str) else asdict(test)
            for metric, test in group.friedman.items()
        },
    }


def _model(result: ModelResult) -> dict[str, Any]:
    return {
        "label": result.label,
        "model": result.model,
        "study": result.study,
        "folds": result.folds,
        "mean_std": result.mean_std,
        "pooled_auc": asdict(result.pooled_auc),
        "calibration": asdict(result.calibration),
        "confusion": result.confusion,
        "ensemble_auc": result.ensemble_auc and asdict(result.ensemble_auc),
        "ensemble_gain": result.ensemble_gain and asdict(result.ensemble_gain),
        "localisation": result.localisation,
    }
