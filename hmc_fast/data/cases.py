"""Cases (one film, its patient, its findings) and the classification tasks posed on them."""

from dataclasses import dataclass
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
    """One film. ``patient_id`` groups the films of one woman."""

    film_id: str
    patient_id: str
    path: Path
    findings: tuple[Finding, ...]

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


def task_by_name(name: str) -> Task:
    """Raises :class:`UserError` for an unknown name."""
    if name not in TASKS:
        raise UserError(f"unknown task {name!r}; choose one of {', '.join(TASKS)}")
    return TASKS[name]
