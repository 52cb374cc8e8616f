"""Cross-validation folds: stratified, grouped by patient, saved, reread and checked.

Two protocols that the literature uses and that leak are there for comparison: ``image`` splits
films without regard to patients, ``augment-first`` splits rotated copies of films.
"""

import io
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

from hmc_fast.data.films import Film
from hmc_fast.data.tasks import Task
from hmc_fast.errors import UserError
from hmc_fast.files import write_json, write_rows, write_text
from hmc_fast.schema import STRICT, read_json_as

PROTOCOL = "patient"
"""Folds that never put films of one patient on both sides."""
AUGMENT_FIRST = "augment-first"
"""Folds of rotated copies: copies of one film are on both sides."""
PROTOCOL_TITLES = {
    PROTOCOL: "Patient-disjoint folds",
    "image": "Folds of films, patients on both sides (leaks)",
    AUGMENT_FIRST: "Folds of rotated copies, films on both sides (leaks)",
}
PROTOCOLS = tuple(PROTOCOL_TITLES)
FEWEST_FOLDS = 2
"""One to test and one to train."""
COLUMNS = ("film", "patient", "label", "fold")


@dataclass(frozen=True)
class Assignment:
    """The fold in which one film is held out."""

    __pydantic_config__ = STRICT
    film: str
    patient: str
    label: int
    fold: int


@dataclass(frozen=True)
class Folds:
    """A partition of films into ``count`` folds; fold ``k`` tests a model trained on the others.

    ``protocol`` is one of :data:`PROTOCOLS`. Raises :class:`UserError` on creation for a doubled
    film, an empty fold, a fold that lacks a class, or, under ``patient``, a patient in two folds.
    """

    task: str
    seed: int
    count: int
    assignments: tuple[Assignment, ...]
    source: str = "folds"
    protocol: str = PROTOCOL

    def __post_init__(self) -> None:
        check_protocol(self.protocol)
        if self.count < FEWEST_FOLDS:
            raise UserError(
                f"{self.source}: {self.count} folds; at least {FEWEST_FOLDS} are needed"
            )
        if self.count > len(self.assignments):
            raise UserError(f"{self.source}: {self.count} folds of {len(self.assignments)} films")
        doubled = [film for film, n in Counter(a.film for a in self.assignments).items() if n > 1]
        if doubled:
            raise UserError(f"{self.source}: film {doubled[0]} is assigned twice")
        fold_of_patient: dict[str, int] = {}
        for a in self.assignments:
            if not 0 <= a.fold < self.count:
                raise UserError(f"{self.source}: film {a.film} is in fold {a.fold} of {self.count}")
            together = fold_of_patient.setdefault(a.patient, a.fold) == a.fold
            if self.protocol == PROTOCOL and not together:
                raise UserError(
                    f"{self.source}: patient {a.patient} is in folds {fold_of_patient[a.patient]} "
                    f"and {a.fold}; a patient's films must stay together"
                )
        classes = {a.label for a in self.assignments}
        for fold in range(self.count):
            if {a.label for a in self.assignments if a.fold == fold} != classes:
                fewer = "use fewer folds, or " if self.count > FEWEST_FOLDS else ""
                raise UserError(
                    f"{self.source}: fold {fold} does not hold every class, of which each needs "
                    f"at least one patient a fold; {fewer}add films of more patients"
                )

    def split(self, films: list[Film], fold: int) -> tuple[list[int], list[int]]:
        """Indices into ``films`` for training and for testing in ``fold``.

        Raises :class:`UserError` where films and folds are not about the same films and patients.
        """
        by_film = {a.film: a for a in self.assignments}
        for film in films:
            assignment = by_film.pop(film.sample_id, None)
            if assignment is None:
                raise UserError(f"{self.source}: film {film.sample_id} is in no fold")
            if assignment.patient != film.patient_id:
                raise UserError(
                    f"{self.source}: film {film.film_id} is of patient {assignment.patient} there, "
                    f"{film.patient_id} in the data"
                )
        if by_film:
            raise UserError(f"{self.source}: film {next(iter(by_film))} is missing from the data")
        fold_of = {a.film: a.fold for a in self.assignments}
        held_out = [fold_of[film.sample_id] == fold for film in films]
        return (
            [i for i, test in enumerate(held_out) if not test],
            [i for i, test in enumerate(held_out) if test],
        )

    def save(self, path: Path) -> None:
        """Write ``path`` (``.json``) and the same table beside it as ``.csv``."""
        write_json(
            path,
            {
                "protocol": self.protocol,
                "task": self.task,
                "seed": self.seed,
                "count": self.count,
                "assignments": [
                    {column: getattr(a, column) for column in COLUMNS} for a in self.assignments
                ],
            },
        )
        table = io.StringIO()
        write_rows(table, [COLUMNS])
        write_rows(table, ([getattr(a, column) for column in COLUMNS] for a in self.assignments))
        write_text(path.with_suffix(".csv"), table.getvalue())


def check_protocol(protocol: str) -> str:
    """Raises :class:`UserError` for an unknown protocol."""
    if protocol not in PROTOCOLS:
        raise UserError(f"unknown protocol {protocol!r}; choose one of {', '.join(PROTOCOLS)}")
    return protocol


def make_folds(
    films: list[Film],
    labels: list[int],
    task: Task,
    count: int,
    seed: int,
    protocol: str = PROTOCOL,
) -> Folds:
    """Stratified folds, the same for the same seed.

    Under ``patient`` each patient's films stay together; under ``image`` and ``augment-first`` (of
    films that are rotated copies already) every film is dealt out on its own.

    Raises :class:`UserError` where there are too few patients, in all or of one class.
    """
    check_protocol(protocol)
    if count < FEWEST_FOLDS:
        raise UserError(f"{count} folds: cross-validation needs at least {FEWEST_FOLDS}")
    _check_enough_patients(films, labels, task, count)
    from sklearn.model_selection import StratifiedGroupKFold, StratifiedKFold  # slow to import

    if protocol == PROTOCOL:
        splitter = StratifiedGroupKFold(n_splits=count, shuffle=True, random_state=seed)
    else:
        splitter = StratifiedKFold(n_splits=count, shuffle=True, random_state=seed)
    groups = [film.patient_id for film in films] if protocol == PROTOCOL else None
    fold_of = [0] * len(films)
    for fold, (_, held_out) in enumerate(splitter.split(films, labels, groups)):
        for index in held_out:
            fold_of[index] = fold
    return Folds(
        task.name,
        seed,
        count,
        tuple(
            Assignment(film.sample_id, film.patient_id, label, fold)
            for film, label, fold in zip(films, labels, fold_of, strict=True)
        ),
        protocol=protocol,
    )


def _check_enough_patients(films: list[Film], labels: list[int], task: Task, count: int) -> None:
    patients: dict[int, set[str]] = {}
    for film, label in zip(films, labels, strict=True):
        patients.setdefault(label, set()).add(film.patient_id)
    fewest = min(map(len, patients.values()))
    if fewest < count:
        there = ", ".join(f"{len(patients[c])} of {task.class_names[c]}" for c in sorted(patients))
        advice = (
            f"use at most {fewest} folds"
            if fewest >= FEWEST_FOLDS
            else f"even {FEWEST_FOLDS} folds need {FEWEST_FOLDS} of each, add films of more"
        )
        raise UserError(
            f"{count} folds need {count} patients of each class, one a fold; the data has {there}: "
            f"{advice}"
        )


def read_folds(path: Path) -> Folds:
    """Reread saved folds; raises :class:`UserError` where they are damaged or not disjoint."""
    stored = read_json_as(_Stored, path)
    return Folds(
        stored.task, stored.seed, stored.count, stored.assignments, str(path), stored.protocol
    )


@dataclass(frozen=True)
class _Stored:
    """The JSON file of :meth:`Folds.save`."""

    __pydantic_config__ = STRICT
    protocol: str
    task: str
    seed: int
    count: int
    assignments: tuple[Assignment, ...]
