"""Studies with drawn predictions, so that statistics and reports need no training."""

from collections.abc import Callable

import numpy as np
import pytest

from hmc_fast.evaluation import Predictions
from hmc_fast.study import StudyRecord
from hmc_fast.study.record import JobRecord
from hmc_fast.training import TrainingConfig

ENVIRONMENT = {
    "gpu": None,
    "cpu": "A & B",
    "cpu_threads": 2,
    "python": "3.11",
    "packages": {"torch": "2.x"},
    "command": "hmc-fast cv --out <runs>",
}


def draw_study(
    skill: dict[str, float],
    folds: int = 5,
    repeats: int = 1,
    classes: int = 2,
    phantoms: bool = False,
    seed: int = 0,
    name: str = "study",
    **config: object,
) -> StudyRecord:
    """40 patients of two films; each model's logits lean to the truth by its skill."""
    films = 80
    labels = np.tile(np.arange(classes), films)[:films]
    class_names = ("rest", "malignant") if classes == 2 else ("normal", "benign", "malignant")
    jobs = []
    for number, (model, strength) in enumerate(skill.items()):
        for repeat in range(repeats):
            fold_of = np.random.default_rng((7, repeat)).permutation(np.arange(films // 2) % folds)
            for fold in range(folds):
                rows = np.flatnonzero(np.repeat(fold_of, 2) == fold)
                rng = np.random.default_rng((seed, number, repeat, fold))
                noise = rng.normal(size=(len(rows), classes))
                predictions = Predictions(
                    tuple(f"mdb{row + 1:03d}" for row in rows),
                    tuple(f"p{row // 2:03d}" for row in rows),
                    (fold,) * len(rows),
                    labels[rows],
                    noise + strength * np.eye(classes)[labels[rows]],
                    class_names,
                )
                history = [{"epoch": e, "train_loss": 1 / (e + 1), "val_loss": 1.0} for e in (0, 1)]
                jobs.append(JobRecord(model, repeat, fold, predictions, history))
    settings = {
        "config": TrainingConfig(**config).to_json(),  # type: ignore[arg-type]
        "protocol": "patient",
        "folds": folds,
        "repeats": repeats,
        "copies": 1,
    }
    data = {"name": "mias_films", "phantoms": phantoms, "films": films, "patients": 40}
    return StudyRecord(name, settings, data, ENVIRONMENT, class_names, jobs)


@pytest.fixture
def study() -> Callable[..., StudyRecord]:
    return draw_study
