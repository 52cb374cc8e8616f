"""Cross-validation: folds × models as independent jobs in one study folder, resumable.

study.json, folds.json, folds.csv
MODEL/foldK/  model.safetensors, predictions.csv, history.csv, result.json
MODEL/out_of_fold.csv
summary.json
"""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from hmc_fast.data import (
    TASKS,
    Case,
    FilmCache,
    Folds,
    Preprocessing,
    make_folds,
    read_folds,
)
from hmc_fast.environment import environment
from hmc_fast.errors import UserError
from hmc_fast.evaluation import Interval, Predictions, mean_and_std, pool, read_predictions
from hmc_fast.files import make_folder, read_json, write_json
from hmc_fast.training.config import TrainingConfig
from hmc_fast.training.train import MODEL_FILE, PREDICTIONS_FILE, RESULT_FILE, TrainingJob, train

STUDY_FILE = "study.json"
FOLDS_FILE = "folds.json"
OUT_OF_FOLD_FILE = "out_of_fold.csv"
SUMMARY_FILE = "summary.json"
LOCK_FILE = ".lock"

Progress = Callable[[str, int, int], object]
"""Called with a job's label, the films trained on since the last call, and the films in all."""


@dataclass(frozen=True)
class StudySummary:
    """One model's results: metrics per fold, their mean and std, and the pooled AUC."""

    model: str
    folds: list[dict[str, float | None]]
    mean_std: dict[str, tuple[float, float] | None]
    pooled_auc: Interval

    def to_json(self) -> dict[str, Any]:
        return asdict(self)


def run_cross_validation(
    models: Sequence[str],
    config: TrainingConfig,
    cases: list[Case],
    folder: Path,
    *,
    fold_count: int = 5,
    folds_file: Path | None = None,
    on_progress: Progress = lambda label, done, total: None,
) -> list[StudySummary]:
    """Train every model on every fold, skipping what ``folder`` holds finished already.

    Folds are patient-disjoint, made from ``config.seed`` or read from ``folds_file``.

    Raises:
        UserError: the folder belongs to another configuration or is in use, folds and films do not
            fit, or a training fails.
    """
    make_folder(folder)
    try:
        with FileLock(folder / LOCK_FILE, timeout=0):
            return _run(models, config, cases, folder, fold_count, folds_file, on_progress)
    except Timeout:
        raise UserError(f"{folder}: another process is working on this study") from None


def fold_folder(folder: Path, model: str, fold: int) -> Path:
    """Where the job of one model and fold keeps its files."""
    return folder / model / f"fold{fold}"


def fold_checkpoints(folder: Path, model: str) -> list[Path]:
    """The checkpoints of all folds of a finished study."""
    count = read_folds(folder / FOLDS_FILE).count
    return [fold_folder(folder, model, fold) / MODEL_FILE for fold in range(count)]


def summarise_study(folder: Path, model: str) -> StudySummary:
    """Pool a model's out-of-fold predictions and summarise them.

    Raises :class:`UserError` where a fold is unfinished, or a film missing or doubled.
    """
    folds = read_folds(folder / FOLDS_FILE)
    parts = [
        read_predictions(fold_folder(folder, model, fold) / PREDICTIONS_FILE)
        for fold in range(folds.count)
    ]
    pooled = _pool_completely(parts, folds, folder / model)
    pooled.save(folder / model / OUT_OF_FOLD_FILE)
    per_fold = [part.metrics() for part in parts]
    return StudySummary(model, per_fold, mean_and_std(per_fold), pooled.auc_interval())


def _run(
    models: Sequence[str],
    config: TrainingConfig,
    cases: list[Case],
    folder: Path,
    fold_count: int,
    folds_file: Path | None,
    on_progress: Progress,
) -> list[StudySummary]:
    task = TASKS[config.task]
    cases, labels = task.select(cases)
    folds = (
        read_folds(folds_file)
        if folds_file is not None
        else make_folds(cases, labels, task, fold_count, config.seed)
    )
    _open_study(folder, config, folds)
    cache = FilmCache(Preprocessing.square(config.size))
    jobs = []
    for model in models:
        for fold in range(folds.count):
            train_index, test_index = folds.split(cases, fold)
            jobs.append(
                TrainingJob(
                    model, config, cases, labels, train_index, test_index, fold, folds.protocol
                )
            )
    total = sum(len(job.train_index) for job in jobs) * config.epochs
    for job in jobs:
        label = f"{job.model_name} fold {job.fold + 1}/{folds.count}"
        target = fold_folder(folder, job.model_name, job.fold)
        if (target / RESULT_FILE).is_file():
            on_progress(label, len(job.train_index) * config.epochs, total)
            continue
        train(job, target, cache, on_films=lambda n, label=label: on_progress(label, n, total))  # type: ignore[misc]
    summaries = [summarise_study(folder, model) for model in models]
    write_json(
        folder / SUMMARY_FILE,
        {
            "protocol": folds.protocol,
            "task": task.name,
            "films": len(cases),
            "patients": len({case.patient_id for case in cases}),
            "models": [summary.to_json() for summary in summaries],
            "environment": environment(),
        },
    )
    return summaries


def _open_study(folder: Path, config: TrainingConfig, folds: Folds) -> None:
    """Record configuration and folds in a new folder; compare with an old one's."""
    path = folder / STUDY_FILE
    settings = {"config": config.to_json(), "protocol": folds.protocol}
    if not path.is_file():
        folds.save(folder / FOLDS_FILE)
        write_json(path, settings)
        return
    previous = read_json(path)
    if previous != settings:
        old, new = previous.get("config", {}), settings["config"]
        changed = [
            f"{key} {old.get(key)!r} there, {value!r} now"
            for key, value in config.to_json().items()
            if old.get(key) != value
        ]
        raise UserError(
            f"{folder}: holds a study with other settings ({'; '.join(changed) or new}); "
            "use another folder, or the old settings to continue"
        )
    if read_folds(folder / FOLDS_FILE).assignments != folds.assignments:
        raise UserError(f"{folder}: holds a study with other folds or films; use another folder")


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
