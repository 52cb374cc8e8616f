"""What the finished jobs of a study say: out-of-fold predictions and their metrics."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hmc_fast.data import Folds, read_folds
from hmc_fast.errors import UserError
from hmc_fast.evaluation import (
    Interval,
    Predictions,
    mean_and_std,
    mean_auc_interval,
    pool,
    read_predictions,
)
from hmc_fast.study.folder import OUT_OF_FOLD_FILE, fold_folder, folds_path, repeat_folder
from hmc_fast.training.train import PREDICTIONS_FILE


@dataclass(frozen=True)
class StudySummary:
    """One model's results: metrics per fold, their mean and std, and the pooled AUC.

    With repeats, ``folds`` has the folds of all of them, and the pooled AUC is the mean over
    repeats.
    """

    model: str
    protocol: str
    folds: list[dict[str, float | None]]
    mean_std: dict[str, tuple[float, float] | None]
    pooled_auc: Interval

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def summarise_study(folder: Path, model: str, repeats: int = 1) -> StudySummary:
    """Pool a model's out-of-fold predictions and summarise them.

    Raises :class:`UserError` where a fold is unfinished, or a film missing or doubled.
    """
    per_fold: list[dict[str, float | None]] = []
    pooled = []
    for repeat in range(repeats):
        predictions = out_of_fold_predictions(folder, model, repeat)
        predictions.save(repeat_folder(folder, model, repeat) / OUT_OF_FOLD_FILE)
        per_fold += [part.metrics() for part in predictions.by_fold()]
        pooled.append(predictions)
    protocol = read_folds(folds_path(folder, 0)).protocol
    return StudySummary(
        model, protocol, per_fold, mean_and_std(per_fold), mean_auc_interval(pooled)
    )


def out_of_fold_predictions(folder: Path, model: str, repeat: int = 0) -> Predictions:
    """The predictions of all folds of one repeat, every film once.

    Raises :class:`UserError` where a fold is unfinished, or a film missing or doubled.
    """
    folds = read_folds(folds_path(folder, repeat))
    parts = [
        read_predictions(fold_folder(folder, model, fold, repeat) / PREDICTIONS_FILE)
        for fold in range(folds.count)
    ]
    return _pool_completely(parts, folds, repeat_folder(folder, model, repeat))


def _pool_completely(parts: list[Predictions], folds: Folds, where: Path) -> Predictions:
    pooled = pool(parts)
    fold_of = {a.film: a.fold for a in folds.assignments}
    predicted = dict(zip(pooled.films, pooled.folds, strict=True))
    for film, fold in fold_of.items():
        if predicted.get(film) != fold:
            raise UserError(f"{where}: film {film} has no out-of-fold prediction of fold {fold}")
    extra = sorted(predicted.keys() - fold_of.keys())
    if extra:
        raise UserError(f"{where}: film {extra[0]} is predicted but in no fold")
    return pooled
