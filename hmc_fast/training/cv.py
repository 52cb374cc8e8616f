"""Cross-validation: models × repeats × folds as independent jobs in one study folder, resumable.

Processes that run the same study at the same time, on one machine or on several with a shared file
system, take different jobs.
"""

import gc
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hmc_fast.data import (
    TASKS,
    Film,
    FilmCache,
    Folds,
    Task,
    make_folds,
    read_folds,
    rotated_copies,
)
from hmc_fast.data.folds import AUGMENT_FIRST, PROTOCOL, check_protocol
from hmc_fast.data.phantom import are_phantoms
from hmc_fast.environment import environment
from hmc_fast.errors import UserError
from hmc_fast.evaluation import (
    Interval,
    Predictions,
    mean_and_std,
    mean_auc_interval,
    pool,
    read_predictions,
)
from hmc_fast.files import write_json
from hmc_fast.training.config import TrainingConfig
from hmc_fast.training.study_folder import (
    FOLDS_FILE,
    OUT_OF_FOLD_FILE,
    SUMMARY_FILE,
    StudySettings,
    fold_checkpoints,
    fold_folder,
    folds_path,
    job_lock,
    open_study,
    repeat_folder,
)
from hmc_fast.training.train import PREDICTIONS_FILE, RESULT_FILE, TrainingJob, train

__all__ = [
    "FOLDS_FILE",
    "Progress",
    "StudyJob",
    "StudyPlan",
    "StudySummary",
    "fold_checkpoints",
    "plan_study",
    "run_cross_validation",
    "summarise_study",
]

Progress = Callable[[str, int, int], object]
"""Called with a job's label, the films trained on since the last call, and the films in all."""

DEFAULT_COPIES = 45
"""Rotated copies a film under the augment-first protocol: every 8 degrees."""


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


@dataclass(frozen=True)
class StudyJob:
    """One training of a study and where its files go."""

    training: TrainingJob
    folder: Path
    label: str

    @property
    def films(self) -> int:
        """Films that its training goes through, over all epochs."""
        return len(self.training.train_index) * self.training.config.epochs

    @property
    def finished(self) -> bool:
        return (self.folder / RESULT_FILE).is_file()


@dataclass(frozen=True)
class StudyPlan:
    """A study's settings, folds (one partition a repeat) and jobs, in their numbers' order."""

    settings: StudySettings
    folds: list[Folds]
    jobs: list[StudyJob]


def plan_study(
    models: Sequence[str],
    config: TrainingConfig,
    cases: list[Film],
    folder: Path,
    *,
    fold_count: int = 5,
    repeats: int = 1,
    protocol: str = PROTOCOL,
    copies: int | None = None,
    folds_file: Path | None = None,
) -> StudyPlan:
    """The jobs of a study, ordered by model, repeat and fold; nothing is written.

    Folds are made from ``config.seed``, or read from ``folds_file`` and then of its protocol.
    ``copies`` is as in :func:`run_cross_validation`.

    Raises :class:`UserError` where folds, films and settings do not fit each other.
    """
    if repeats < 1:
        raise UserError(f"{repeats} repeats: a study needs at least 1")
    if folds_file is not None and repeats > 1:
        raise UserError(f"{folds_file}: holds one partition, so it cannot be repeated")
    task = TASKS[config.task]
    given = read_folds(folds_file) if folds_file is not None else None
    if given is not None:
        fold_count, protocol = given.count, given.protocol
    if copies is None:
        copies = DEFAULT_COPIES if check_protocol(protocol) == AUGMENT_FIRST else 1
    if copies != 1 or protocol == AUGMENT_FIRST:
        cases = rotated_copies(cases, copies)
    cases, labels = task.select(cases)
    seeds = [config.seed + repeat for repeat in range(repeats)]
    folds = [given or make_folds(cases, labels, task, fold_count, seed, protocol) for seed in seeds]
    _check_labels(cases, labels, folds[0], task)
    jobs = []
    for model in models:
        for repeat, partition in enumerate(folds):
            for fold in range(partition.count):
                train_index, test_index = partition.split(cases, fold)
                training = TrainingJob(
                    model,
                    replace(config, seed=seeds[repeat]),
                    cases,
                    labels,
                    train_index,
                    test_index,
                    fold,
                    partition.protocol,
                )
                label = f"{model} fold {fold + 1}/{partition.count}"
                if repeats > 1:
                    label += f" repeat {repeat + 1}/{repeats}"
                jobs.append(StudyJob(training, fold_folder(folder, model, fold, repeat), label))
    return StudyPlan(StudySettings(config, protocol, folds[0].count, repeats, copies), folds, jobs)


def run_cross_validation(
    models: Sequence[str],
    config: TrainingConfig,
    cases: list[Film],
    folder: Path,
    *,
    fold_count: int = 5,
    repeats: int = 1,
    protocol: str = PROTOCOL,
    copies: int | None = None,
    folds_file: Path | None = None,
    only_jobs: Sequence[int] | None = None,
    on_progress: Progress = lambda label, done, total: None,
) -> list[StudySummary]:
    """Train every model on every fold, skipping what ``folder`` holds finished already.

    A job that another process is working on is left to it, and waited for at the end. A job that
    fails does not stop the others.

    Args:
        models: names of the models.
        config: how they are trained.
        cases: the films.
        folder: of the study.
        fold_count: number of folds.
        repeats: how often everything is repeated, with other folds and seeds.
        protocol: of :data:`hmc_fast.data.PROTOCOLS`.
        copies: rotated copies a film, by default 45 under ``augment-first`` and 1 elsewhere. The
            patient protocol keeps all copies of a patient's films on one side.
        folds_file: saved folds to use instead of new ones.
        only_jobs: numbers of the jobs to run, from 0, by model, repeat and fold; None for all.
        on_progress: told of every training step.

    Returns:
        A summary for every model whose jobs are all finished.

    Raises:
        UserError: the folder belongs to another configuration, folds and films do not fit, a
            training fails, or one of ``only_jobs`` does not exist or is being run elsewhere.
    """
    plan = plan_study(
        models,
        config,
        cases,
        folder,
        fold_count=fold_count,
        repeats=repeats,
        protocol=protocol,
        copies=copies,
        folds_file=folds_file,
    )
    chosen = _choose(plan.jobs, only_jobs)
    open_study(folder, plan.settings, plan.folds, _describe(plan.jobs[0].training.cases))
    _run_jobs(chosen, wait=only_jobs is None, on_progress=on_progress)
    finished = [
        model
        for model in models
        if all(job.finished for job in plan.jobs if job.training.model_name == model)
    ]
    summaries = [summarise_study(folder, model, repeats) for model in finished]
    if len(finished) == len(models):
        _write_summary(folder, plan, summaries)
    return summaries


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


def _choose(jobs: list[StudyJob], only_jobs: Sequence[int] | None) -> list[StudyJob]:
    if only_jobs is None:
        return jobs
    for number in only_jobs:
        if not 0 <= number < len(jobs):
            raise UserError(
                f"job {number}: this study has {len(jobs)} jobs, numbered 0 to {len(jobs) - 1}"
            )
    return [jobs[number] for number in only_jobs]


def _run_jobs(jobs: list[StudyJob], *, wait: bool, on_progress: Progress) -> None:
    total = sum(job.films for job in jobs)
    cache = FilmCache(jobs[0].training.config.preprocessing())
    failures: list[str] = []
    busy = []
    for job in jobs:
        with job_lock(job.folder, wait=False) as mine:
            if not mine:
                busy.append(job)
            else:
                _run_job(job, cache, total, failures, on_progress)
    if busy and not wait:
        raise UserError(f"{busy[0].label}: another process is working on this job")
    for job in busy:
        on_progress(f"waiting for another process: {job.label}", 0, total)
        with job_lock(job.folder, wait=True):
            _run_job(job, cache, total, failures, on_progress)
    if failures:
        others = len(failures) - 1
        more = f"; {others} more job{'s' if others > 1 else ''} failed" if others else ""
        raise UserError(f"{failures[0]}{more}; what is finished is kept")


def _run_job(
    job: StudyJob, cache: FilmCache, total: int, failures: list[str], on_progress: Progress
) -> None:
    if job.finished:
        on_progress(job.label, job.films, total)
    try:
        train(
            job.training,
            job.folder,
            cache,
            on_films=lambda count: on_progress(job.label, count, total),
        )
    except UserError as error:
        failures.append(f"{job.label}: {error}")
    # Trainer, module and model refer to each other: gigabytes that would outlive the job.
    gc.collect()


def _describe(cases: list[Film]) -> dict[str, Any]:
    folder = cases[0].path.parent
    return {
        "name": folder.name,
        "phantoms": are_phantoms(folder),
        "films": len({case.film_id for case in cases}),
        "patients": len({case.patient_id for case in cases}),
    }


def _write_summary(folder: Path, plan: StudyPlan, summaries: list[StudySummary]) -> None:
    data = _describe(plan.jobs[0].training.cases)
    write_json(
        folder / SUMMARY_FILE,
        {
            "protocol": plan.settings.protocol,
            "task": plan.settings.config.task,
            "films": data["films"],
            "patients": data["patients"],
            "models": [summary.to_json() for summary in summaries],
            "environment": environment(),
        },
    )


def _check_labels(cases: list[Film], labels: list[int], folds: Folds, task: Task) -> None:
    """Folds read from a file must be about this task and these labels."""
    if folds.task != task.name:
        raise UserError(f"{folds.source}: folds of task {folds.task}, but {task.name} is asked for")
    label_of = {a.film: a.label for a in folds.assignments}
    for case, label in zip(cases, labels, strict=True):
        if label_of.get(case.sample_id, label) != label:
            raise UserError(f"{folds.source}: film {case.sample_id} has another label in the data")


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
