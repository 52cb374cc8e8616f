"""Cases (one film, its patient, its findings) and the classification tasks posed on them."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from hmc_fast.errors import UserError

Severity = Literal["normal", "benign", "malignant"]
_SEVERITY_ORDER: tuple[Severity, ...] = ("normal", "benign", "malignant")


@dataclass(frozen=True)
class Finding:
    """One annotated abnormality.

    ``x``, ``y`` (centre) and ``radius`` are in pixels of the original film with the origin at the
    bottom left, as MIAS gives them, or None where it gives none.
    """

    kind: str
    severity: Severity
    x: int | None = None
    y: int | None = None
    radius: int | None = None


@dataclass(frozen=True)
class Case:
    """One film. ``patient_id`` groups the films of one woman.

    ``rotation`` is in degrees, counter-clockwise; other than 0 makes the case a rotated copy of its
    film, as the augment-first protocol wants it.
    """

    film_id: str
    patient_id: str
    path: Path
    findings: tuple[Finding, ...]
    rotation: float = 0.0

    @property
    def sample_id(self) -> str:
        """The film's name, with the angle for a rotated copy: ``mdb001@8``."""
        return f"{self.film_id}@{self.rotation:g}" if self.rotation else self.film_id

    @property
    def severity(self) -> Severity:
        """The worst finding of the film."""
        return max((f.severity for f in self.findings), key=_SEVERITY_ORDER.index, default="normal")


@dataclass(frozen=True)
class Task:
    """A question asked of every film: class names, and the class of each severity.

    A severity that is missing from ``classes`` leaves the film out. In two-class tasks class 1 is
    the positive one.
    """

    name: str
    class_names: tuple[str, ...]
    classes: dict[Severity, int]

    def select(self, cases: list[Case]) -> tuple[list[Case], list[int]]:
        """The cases that the task is posed on, and their classes.

        Raises :class:`UserError` where fewer than two classes occur.
        """
        chosen = [case for case in cases if case.severity in self.classes]
        labels = [self.classes[case.severity] for case in chosen]
        if len(set(labels)) < 2:
            found = ", ".join(sorted({self.class_names[label] for label in labels})) or "no film"
            raise UserError(
                f"task {self.name} needs films of at least two of {', '.join(self.class_names)}; "
                f"the data holds only {found}"
            )
        return chosen, labels


TASKS = {
    task.name: task
    for task in (
        Task("malignant", ("rest", "malignant"), {"normal": 0, "benign": 0, "malignant": 1}),
        Task("benign_malignant", ("benign", "malignant"), {"benign": 0, "malignant": 1}),
        Task("abnormal", ("normal", "abnormal"), {"normal": 0, "benign": 1, "malignant": 1}),
        Task("three_class", _SEVERITY_ORDER, {"normal": 0, "benign": 1, "malignant": 2}),
    )
}


def rotated_copies(cases: list[Case], copies: int) -> list[Case]:
    """Every film at ``copies`` angles that divide the circle evenly, the film itself first.

    Raises :class:`UserError` for fewer than two copies.
    """
    if copies < 2:
        raise UserError(f"{copies} rotated copies a film: augmenting first needs at least 2")
    angles = [round(360 * k / copies, 4) for k in range(copies)]
    return [replace(case, rotation=angle) for case in cases for angle in angles]


def task_by_name(name: str) -> Task:
    """Raises :class:`UserError` for an unknown name."""
    if name not in TASKS:
        raise UserError(f"unknown task {name!r}; choose one of {', '.join(TASKS)}")
    return TASKS[name]
