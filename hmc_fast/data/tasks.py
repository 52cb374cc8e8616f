"""Classification tasks: a question asked of every film."""

from dataclasses import dataclass

from hmc_fast.data.films import SEVERITIES, Film, Severity
from hmc_fast.errors import UserError


@dataclass(frozen=True)
class Task:
    """A question asked of every film: class names, and the class of each severity.

    A severity that is missing from ``classes`` leaves the film out. In two-class tasks class 1 is
    the positive one.
    """

    name: str
    class_names: tuple[str, ...]
    classes: dict[Severity, int]

    def select(self, films: list[Film]) -> tuple[list[Film], list[int]]:
        """The films that the task is posed on, and their classes.

        Raises :class:`UserError` where fewer than two classes occur.
        """
        chosen = [film for film in films if film.severity in self.classes]
        labels = [self.classes[film.severity] for film in chosen]
        if len(set(labels)) < 2:
            present = ", ".join(sorted({self.class_names[label] for label in labels})) or "no film"
            raise UserError(
                f"task {self.name} needs films of at least two of {', '.join(self.class_names)}; "
                f"the data holds only {present}"
            )
        return chosen, labels


TASKS = {
    task.name: task
    for task in (
        Task("malignant", ("rest", "malignant"), {"normal": 0, "benign": 0, "malignant": 1}),
        Task("benign_malignant", ("benign", "malignant"), {"benign": 0, "malignant": 1}),
        Task("abnormal", ("normal", "abnormal"), {"normal": 0, "benign": 1, "malignant": 1}),
        Task("three_class", SEVERITIES, {"normal": 0, "benign": 1, "malignant": 2}),
    )
}


def task_by_name(name: str) -> Task:
    """Raises :class:`UserError` for an unknown name."""
    if name not in TASKS:
        raise UserError(f"unknown task {name!r}; choose one of {', '.join(TASKS)}")
    return TASKS[name]
