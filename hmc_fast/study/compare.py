"""The statistics of one or several studies: per model, per pair, and over all models."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmc_fast.data.folds import PROTOCOL_TITLES
from hmc_fast.errors import UserError
from hmc_fast.evaluation import (
    METRIC_NAMES,
    Interval,
    Predictions,
    ensemble,
    mean_and_std,
)
from hmc_fast.evaluation.bootstrap import percentile_interval
from hmc_fast.evaluation.calibration import Calibration, mean_calibration
from hmc_fast.evaluation.comparison import (
    FriedmanTest,
    corrected_resampled_p,
    delong_p,
    friedman_nemenyi,
)
from hmc_fast.evaluation.predictions import mean_resampled_auc
from hmc_fast.study.record import StudyRecord


@dataclass(frozen=True)
class ModelResult:
    """One model of one study.

    ``folds`` are metrics of all folds of all repeats, ``confusion`` ``[true, predicted]`` counts of
    all repeats. ``ensemble_auc`` is of the mean of a film's held-out probabilities over repeats and
    ``ensemble_gain`` its difference from the mean of the single AUCs; None with one repeat.
    ``localisation`` has the scores of the model's maps, where they were measured.
    """

    label: str
    model: str
    study: str
    folds: list[dict[str, float | None]]
    mean_std: dict[str, tuple[float, float] | None]
    pooled_auc: Interval
    calibration: Calibration
    confusion: list[list[int]]
    ensemble_auc: Interval | None
    ensemble_gain: Interval | None
    repeats: list[Predictions]
    histories: list[list[dict[str, float]]]
    localisation: dict[str, Any] | None


@dataclass(frozen=True)
class PairResult:
    """The difference of two models' pooled AUCs with its paired interval, and two checks.

    p-values are not corrected for the number of pairs; None where a test does not apply.
    """

    first: str
    second: str
    auc_difference: Interval
    delong_p: float | None
    nadeau_bengio_p: float | None


@dataclass(frozen=True)
class Group:
    """Models that were tested on the same films in the same folds.

    ``friedman`` maps each metric to its test, or to the reason why there is none.
    """

    title: str
    protocol: str
    results: list[ModelResult]
    pairs: list[PairResult]
    friedman: dict[str, FriedmanTest | str]


@dataclass(frozen=True)
class Comparison:
    """Everything a report says."""

    studies: list[StudyRecord]
    groups: list[Group]


def compare(studies: Sequence[StudyRecord]) -> Comparison:
    """Compare all models of all studies, as far as they share films and folds.

    Raises :class:`UserError` where a study is unfinished.
    """
    grouped: dict[object, list[tuple[StudyRecord, ModelResult]]] = {}
    for study, label in zip(studies, _study_labels(studies), strict=True):
        for model in study.models:
            result = _model_result(study, model, f"{model}, {label}" if label else model)
            key = (study.protocol, study.settings["repeats"], _partition(result.repeats))
            grouped.setdefault(key, []).append((study, result))
    groups = []
    for members in grouped.values():
        results = [result for _, result in members]
        groups.append(_group(members[0][0], results))
    return Comparison(list(studies), groups)


def _study_labels(studies: Sequence[StudyRecord]) -> list[str]:
    """What each study's settings change from the first one's; ``""`` for the first.

    Raises :class:`UserError` where two studies have the same settings and would look the same.
    """
    first = _flat_settings(studies[0])
    labels = []
    for study in studies:
        settings = _flat_settings(study)
        changed = [f"{key} {value}" for key, value in settings.items() if first.get(key) != value]
        labels.append(", ".join(changed))
    for number, label in enumerate(labels):
        for earlier in range(number):
            shared = set(studies[earlier].models) & set(studies[number].models)
            if labels[earlier] == label and shared:
                raise UserError(
                    f"{studies[number].name}: has the same settings as {studies[earlier].name} and "
                    f"the same model {min(shared)}; give each study once"
                )
    return labels


def _flat_settings(study: StudyRecord) -> dict[str, Any]:
    rest = {key: value for key, value in study.settings.items() if key != "config"}
    return {**study.config, **rest}


def _partition(repeats: list[Predictions]) -> object:
    """Films, labels and folds, the same for models that can be compared fold by fold."""
    return tuple(frozenset(zip(p.films, p.labels.tolist(), p.folds, strict=True)) for p in repeats)


def _model_result(study: StudyRecord, model: str, label: str) -> ModelResult:
    repeats = study.out_of_fold(model)
    folds = [part.metrics() for predictions in repeats for part in predictions.by_fold()]
    single = mean_resampled_auc(repeats)
    ensemble_auc = ensemble_gain = None
    if len(repeats) > 1:
        together = mean_resampled_auc([ensemble(repeats)])
        ensemble_auc = percentile_interval(together)
        ensemble_gain = percentile_interval(together - single)
    return ModelResult(
        label=label,
        model=model,
        study=study.name,
        folds=folds,
        mean_std=mean_and_std(folds),
        pooled_auc=percentile_interval(single),
        calibration=mean_calibration(repeats),
        confusion=_confusion(repeats).tolist(),
        ensemble_auc=ensemble_auc,
        ensemble_gain=ensemble_gain,
        repeats=repeats,
        histories=[job.history for job in study.jobs_of(model)],
        localisation=study.localisation.get(model),
    )


def _confusion(repeats: list[Predictions]) -> NDArray[np.int64]:
    classes = len(repeats[0].class_names)
    counts = np.zeros((classes, classes), np.int64)
    for predictions in repeats:
        np.add.at(counts, (predictions.labels, predictions.decisions), 1)
    return counts


def _group(study: StudyRecord, results: list[ModelResult]) -> Group:
    fold_count = study.settings["folds"]
    pairs = [
        _pair(first, second, fold_count)
        for number, first in enumerate(results)
        for second in results[number + 1 :]
    ]
    title = f"{PROTOCOL_TITLES[study.protocol]}, {fold_count} folds"
    if study.settings["repeats"] > 1:
        title += f" × {study.settings['repeats']} repeats"
    friedman = {metric: _friedman(results, metric, fold_count) for metric in METRIC_NAMES}
    return Group(title, study.protocol, results, pairs, friedman)


def _pair(first: ModelResult, second: ModelResult, fold_count: int) -> PairResult:
    difference = mean_resampled_auc(first.repeats) - mean_resampled_auc(second.repeats)
    aucs = [(a["auc_roc"], b["auc_roc"]) for a, b in zip(first.folds, second.folds, strict=True)]
    known = np.array([a - b for a, b in aucs if a is not None and b is not None])
    complete = len(known) == len(aucs)
    return PairResult(
        first.label,
        second.label,
        percentile_interval(difference),
        _delong(first.repeats[0], second.repeats[0]),
        corrected_resampled_p(known, 1 / (fold_count - 1)) if complete else None,
    )


def _delong(first: Predictions, second: Predictions) -> float | None:
    """Of the first repeat; two classes only."""
    if len(first.class_names) != 2:
        return None
    row_of = {film: row for row, film in enumerate(second.films)}
    order = [row_of[film] for film in first.films]
    return delong_p(first.probabilities[:, 1], second.probabilities[order, 1], first.labels)


def _friedman(results: list[ModelResult], metric: str, fold_count: int) -> FriedmanTest | str:
    """Over the folds of the first repeat: those of the others share its films."""
    values = [[fold[metric] for fold in result.folds[:fold_count]] for result in results]
    table = np.array(values, np.float64).T
    try:
        return friedman_nemenyi(table)
    except ValueError as error:
        return str(error)
