"""Cross-validation: the jobs of a study in one folder, resumable.

Processes that run the same study at the same time, on one machine or on several with a shared file
system, take different jobs.
"""

import gc
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hmc_fast.data import Film, FilmCache, Preprocessing
from hmc_fast.data.folds import PROTOCOL
from hmc_fast.data.mias import is_film_id, missing_films
from hmc_fast.data.phantom import are_phantoms
from hmc_fast.environment import environment
from hmc_fast.errors import UserError
from hmc_fast.files import spelled, write_json
from hmc_fast.progress import Progress, no_progress
from hmc_fast.study.folder import SUMMARY_FILE, job_lock, open_study
from hmc_fast.study.plan import StudyJob, StudyPlan, plan_study
from hmc_fast.study.summary import StudySummary, summarise_study
from hmc_fast.training.config import TrainingConfig
from hmc_fast.training.loggers import check_loggers
from hmc_fast.training.progress import TrainingProgress
from hmc_fast.training.train import FEATURES_FOLDER, check_job, train


def run_cross_validation(
    models: Sequence[str],
    config: TrainingConfig,
    films: list[Film],
    folder: Path,
    *,
    fold_count: int = 5,
    repeats: int = 1,
    protocol: str = PROTOCOL,
    copies: int | None = None,
    folds_file: Path | None = None,
    only_jobs: Sequence[int] | None = None,
    loggers: Sequence[str] = (),
    on_progress: Progress = no_progress,
) -> list[StudySummary]:
    """Train every model on every fold, skipping what ``folder`` holds finished already.

    A job that another process is working on is left to it, and waited for at the end. A job that
    fails does not stop the others.

    Args:
        models: names of the models.
        config: how they are trained.
        films: the films.
        folder: of the study.
        fold_count: number of folds.
        repeats: how often everything is repeated, with other folds and seeds.
        protocol: of :data:`hmc_fast.data.PROTOCOLS`.
        copies: rotated copies a film, by default 45 under ``augment-first`` and 1 elsewhere. The
            patient protocol keeps all copies of a patient's films on one side.
        folds_file: saved folds to use instead of new ones.
        only_jobs: numbers of the jobs to run, from 0, by model, repeat and fold; None for all.
        loggers: where learning curves go besides their tables, see
            :func:`hmc_fast.training.loggers.make_loggers`.
        on_progress: told of every training step, and of every epoch's loss and AUC.

    Returns:
        A summary for every model whose jobs are all finished.

    Raises:
        UserError: the folder belongs to another configuration, folds and films do not fit, a
            training fails, or one of ``only_jobs`` does not exist or is being run elsewhere.
    """
    plan = plan_study(
        models,
        config,
        films,
        folder,
        fold_count=fold_count,
        repeats=repeats,
        protocol=protocol,
        copies=copies,
        folds_file=folds_file,
    )
    chosen = _choose(plan.jobs, only_jobs)
    check_loggers(loggers)
    for job in chosen:
        check_job(job.training)
    open_study(folder, plan.settings, plan.folds, describe_films(plan.jobs[0].training.films))
    _run_jobs(chosen, folder, wait=only_jobs is None, loggers=loggers, on_progress=on_progress)
    finished = [
        model
        for model in models
        if all(job.finished for job in plan.jobs if job.training.model_name == model)
    ]
    summaries = [summarise_study(folder, model, repeats) for model in finished]
    if len(finished) == len(models):
        _write_summary(folder, plan, summaries)
    return summaries


def _choose(jobs: list[StudyJob], only_jobs: Sequence[int] | None) -> list[StudyJob]:
    if only_jobs is None:
        return jobs
    for number in only_jobs:
        if not 0 <= number < len(jobs):
            raise UserError(
                f"job {number}: this study has {len(jobs)} jobs, numbered 0 to {len(jobs) - 1}"
            )
    return [jobs[number] for number in only_jobs]


def _run_jobs(
    jobs: list[StudyJob],
    folder: Path,
    *,
    wait: bool,
    loggers: Sequence[str],
    on_progress: Progress,
) -> None:
    total = sum(job.films_to_train for job in jobs)
    caches: dict[Preprocessing, FilmCache] = {}
    features = folder / FEATURES_FOLDER
    failures: list[str] = []
    busy = []
    for job in jobs:
        with job_lock(job.folder, wait=False) as mine:
            if not mine:
                busy.append(job)
            else:
                _run_job(job, caches, features, total, failures, loggers, on_progress)
    if busy and not wait:
        raise UserError(f"{busy[0].label}: another process is working on this job")
    for job in busy:
        on_progress(f"waiting for another process: {job.label}", 0, total)
        with job_lock(job.folder, wait=True):
            _run_job(job, caches, features, total, failures, loggers, on_progress)
    if failures:
        others = len(failures) - 1
        more = f"; {others} more job{'s' if others > 1 else ''} failed" if others else ""
        raise UserError(f"{failures[0]}{more}; what is finished is kept")


def _run_job(
    job: StudyJob,
    caches: dict[Preprocessing, FilmCache],
    features: Path,
    total: int,
    failures: list[str],
    loggers: Sequence[str],
    on_progress: Progress,
) -> None:
    if job.finished:
        on_progress(job.label, job.films_to_train, total)
    try:
        training = job.training
        preprocessing = training.config.preprocessing(training.model_name)
        epochs = training.config.epochs_of(training.model_name)
        progress = TrainingProgress(job.label, epochs, total, on_progress)
        train(
            training,
            job.folder,
            caches.setdefault(preprocessing, FilmCache(preprocessing)),
            features=features,
            loggers=loggers,
            on_films=progress.films,
            on_epoch=progress.epoch,
        )
    except UserError as error:
        failures.append(f"{job.label}: {error}")
    # Trainer, module and model refer to each other: gigabytes that would outlive the job.
    gc.collect()


def describe_films(films: Sequence[Film]) -> dict[str, Any]:
    """What a record tells of its films; ``missing`` where they are a subset of MIAS."""
    folder = films[0].path.parent
    missing = missing_films(folder) if is_film_id(films[0].film_id) else 0
    return {
        "name": spelled(folder.name),
        "phantoms": are_phantoms(folder),
        "films": len({film.film_id for film in films}),
        "patients": len({film.patient_id for film in films}),
        **({"missing": missing} if missing else {}),
    }


def _write_summary(folder: Path, plan: StudyPlan, summaries: list[StudySummary]) -> None:
    data = describe_films(plan.jobs[0].training.films)
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
