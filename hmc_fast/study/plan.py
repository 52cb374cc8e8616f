"""What a study trains: models × repeats × folds as independent jobs."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from hmc_fast.data import TASKS, Film, Folds, Task, make_folds, read_folds, rotated_copies
from hmc_fast.data.folds import AUGMENT_FIRST, PROTOCOL, check_protocol
from hmc_fast.errors import UserError
from hmc_fast.study.folder import StudySettings, fold_folder
from hmc_fast.training.config import TrainingConfig
from hmc_fast.training.train import RESULT_FILE, TrainingJob

DEFAULT_COPIES = 45
"""Rotated copies a film under the augment-first protocol: every 8 degrees."""


@dataclass(frozen=True)
class StudyJob:
    """One training of a study and where its files go."""

    training: TrainingJob
    folder: Path
    label: str

    @property
    def films_to_train(self) -> int:
        """Of its training."""
        return self.training.films_to_train

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
    films: list[Film],
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
        films = rotated_copies(films, copies)
    films, labels = task.select(films)
    seeds = [config.seed + repeat for repeat in range(repeats)]
    folds = [given or make_folds(films, labels, task, fold_count, seed, protocol) for seed in seeds]
    _check_labels(films, labels, folds[0], task)
    jobs = []
    for model in models:
        for repeat, partition in enumerate(folds):
            for fold in range(partition.count):
                train_index, test_index = partition.split(films, fold)
                training = TrainingJob(
                    model,
                    replace(config, seed=seeds[repeat]),
                    films,
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


def _check_labels(films: list[Film], labels: list[int], folds: Folds, task: Task) -> None:
    """Folds read from a file must be about this task and these labels."""
    if folds.task != task.name:
        raise UserError(f"{folds.source}: folds of task {folds.task}, but {task.name} is asked for")
    label_of = {a.film: a.label for a in folds.assignments}
    for film, label in zip(films, labels, strict=True):
        if label_of.get(film.sample_id, label) != label:
            raise UserError(f"{folds.source}: film {film.sample_id} has another label in the data")
