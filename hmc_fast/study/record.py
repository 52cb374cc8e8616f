"""A study's numbers without its films and weights: read from its folder, kept as JSON lines."""

import json
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
from pydantic import Field

from hmc_fast.data import TASKS, Folds, read_folds
from hmc_fast.errors import UserError
from hmc_fast.evaluation import Predictions, pool, read_predictions
from hmc_fast.evaluation.localisation import (
    LOCALISATION_FILE,
    check_localisation,
    read_localisation,
)
from hmc_fast.files import spelled, write_text
from hmc_fast.models.registry import MODEL_NAMES
from hmc_fast.schema import STRICT, parse_json
from hmc_fast.study.folder import (
    STUDY_FILE,
    RecordedSettings,
    fold_folder,
    folds_path,
    read_settings,
)
from hmc_fast.training import TrainingConfig
from hmc_fast.training.train import PREDICTIONS_FILE, RESULT_FILE, read_result

SCHEMA = "hmc-fast-study/1"
LOCALISATION = "localisation"
PER_FILM = "per_film"


@dataclass(frozen=True)
class JobRecord:
    """One trained fold: its held-out predictions and its learning curve."""

    model: str
    repeat: int
    fold: int
    predictions: Predictions
    history: list[dict[str, float]]


@dataclass(frozen=True)
class StudyRecord:
    """All finished jobs of a study, its settings, and what it was made on and with.

    ``localisation`` maps models to what ``hmc-fast localise`` found of their maps (see
    :mod:`hmc_fast.evaluation.localisation`), without its rows of single films.
    """

    name: str
    settings: dict[str, Any]
    data: dict[str, Any]
    environment: dict[str, Any]
    class_names: tuple[str, ...]
    jobs: list[JobRecord]
    localisation: dict[str, dict[str, Any]] = field(default_factory=dict)

    @property
    def protocol(self) -> str:
        return str(self.settings["protocol"])

    @property
    def config(self) -> dict[str, Any]:
        return dict(self.settings["config"])

    @property
    def models(self) -> list[str]:
        """Names of the models, in the registry's order."""
        present = {job.model for job in self.jobs}
        return [name for name in MODEL_NAMES if name in present] + sorted(present - {*MODEL_NAMES})

    def jobs_of(self, model: str) -> list[JobRecord]:
        """A model's jobs, repeat by repeat."""
        jobs = [job for job in self.jobs if job.model == model]
        return sorted(jobs, key=lambda job: (job.repeat, job.fold))

    def out_of_fold(self, model: str) -> list[Predictions]:
        """A model's pooled predictions, one table a repeat.

        Raises :class:`UserError` where a fold is missing or a film is predicted twice.
        """
        by_repeat = []
        for repeat in range(self.settings["repeats"]):
            jobs = [job for job in self.jobs_of(model) if job.repeat == repeat]
            missing = set(range(self.settings["folds"])) - {job.fold for job in jobs}
            if missing:
                raise UserError(
                    f"{self.name}: {model} has no result for fold {min(missing)} of repeat "
                    f"{repeat}; run the study to its end"
                )
            by_repeat.append(pool([job.predictions for job in jobs]))
        return by_repeat


def read_study(path: Path) -> StudyRecord:
    """A study from its folder or from a record file.

    Raises :class:`UserError` where it is missing, damaged or has no finished job.
    """
    return _read_folder(path) if path.is_dir() else _read_file(path)


def is_study_record(path: Path) -> bool:
    """Whether ``path`` is a study's record, so that another may take its place."""
    try:
        with path.open(encoding="utf-8") as file:
            parse_json(_Header, file.readline(), str(path))
    except (OSError, UnicodeDecodeError, UserError):
        return False
    return True


def write_study_record(path: Path, record: StudyRecord) -> None:
    """First line the study, then one line a job and one for each model's maps; atomically."""
    lines: list[dict[str, Any]] = [
        {
            "schema": SCHEMA,
            "name": record.name,
            "settings": record.settings,
            "data": record.data,
            "environment": record.environment,
            "class_names": list(record.class_names),
        }
    ]
    for job in record.jobs:
        predictions = job.predictions
        lines.append(
            {
                "model": job.model,
                "repeat": job.repeat,
                "fold": job.fold,
                "metrics": predictions.metrics(),
                "history": job.history,
                "films": list(predictions.films),
                "patients": list(predictions.patients),
                "labels": predictions.labels.tolist(),
                "logits": predictions.logits.tolist(),
            }
        )
    lines += [{LOCALISATION: result} for result in record.localisation.values()]
    write_text(path, "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines))


def _read_folder(folder: Path) -> StudyRecord:
    settings = asdict(read_settings(folder))
    data = settings.pop("data")
    try:
        settings["config"]["weights"] = TrainingConfig(**settings["config"]).weights_label()
    except TypeError as error:
        raise UserError(f"{folder / STUDY_FILE}: its config is of no training ({error})") from None
    jobs: list[JobRecord] = []
    environment: dict[str, Any] = {}
    folds_of = [read_folds(folds_path(folder, r)) for r in range(settings["repeats"])]
    for model in sorted(child.name for child in folder.iterdir() if child.is_dir()):
        for repeat in range(settings["repeats"]):
            for fold in range(settings["folds"]):
                job_folder = fold_folder(folder, model, fold, repeat)
                if not (job_folder / RESULT_FILE).is_file():
                    continue
                result = read_result(job_folder)
                environment = result["environment"]
                predictions = _held_out(job_folder / PREDICTIONS_FILE, folds_of[repeat], fold)
                jobs.append(JobRecord(model, repeat, fold, predictions, result["history"]))
    if not jobs:
        raise UserError(f"{folder}: no job of this study is finished yet")
    class_names = jobs[0].predictions.class_names
    localisation = _read_localisation(folder, {job.model for job in jobs}, settings)
    return StudyRecord(
        spelled(folder.name), settings, data, environment, class_names, jobs, localisation
    )


def _held_out(path: Path, folds: Folds, fold: int) -> Predictions:
    """A job's predictions; raises :class:`UserError` where they are not of its held-out films."""
    predictions = read_predictions(path)
    if predictions.class_names != TASKS[folds.task].class_names:
        raise UserError(f"{path}: its classes are not those of task {folds.task}, in their order")
    expected = {(a.film, a.patient, a.label) for a in folds.assignments if a.fold == fold}
    labels = predictions.labels.tolist()
    found = set(zip(predictions.films, predictions.patients, labels, strict=True))
    if found != expected or set(predictions.folds) != {fold}:
        film = min((film for film, *_ in found ^ expected), default="of another fold")
        raise UserError(
            f"{path}: film {film} is missing, foreign, or has another patient, label or fold than "
            f"in {folds.source}; train the fold again"
        )
    return predictions


def _read_localisation(
    folder: Path, models: set[str], settings: dict[str, Any]
) -> dict[str, dict[str, Any]]:
    """What is beside the folds of each model; it must be of models trained as the study's."""
    trained = {key: settings[key] for key in ("protocol", "config")}
    scores = {}
    for model in sorted(models):
        path = folder / model / LOCALISATION_FILE
        if not path.is_file():
            continue
        result = read_localisation(path)
        seeds = settings["config"]["seed"] + np.arange(settings["repeats"])
        expected = [{**trained, "config": {**trained["config"], "seed": int(s)}} for s in seeds]
        if result["model"] != model or result["training"] not in expected:
            raise UserError(
                f"{path}: is of other checkpoints than this study's; run hmc-fast localise on "
                f"{folder / model}"
            )
        scores[model] = {key: value for key, value in result.items() if key != PER_FILM}
    return scores


@dataclass(frozen=True)
class _Header:
    """The first line of a record."""

    __pydantic_config__ = STRICT
    schema: Literal["hmc-fast-study/1"]
    name: str
    settings: dict[str, Any]
    data: dict[str, Any]
    environment: dict[str, Any]
    class_names: tuple[str, ...]


@dataclass(frozen=True)
class _JobLine:
    """The line of one job; its metrics follow from the logits."""

    __pydantic_config__ = STRICT
    model: str
    repeat: Annotated[int, Field(ge=0)]
    fold: Annotated[int, Field(ge=0)]
    metrics: dict[str, float | None]
    history: list[dict[str, float]]
    films: tuple[str, ...]
    patients: tuple[str, ...]
    labels: list[int]
    logits: list[list[float]]

    def __post_init__(self) -> None:
        lengths = {len(x) for x in (self.films, self.patients, self.labels, self.logits)}
        if len(lengths) > 1:
            raise UserError("films, patients, labels and logits are not equally many")


@dataclass(frozen=True)
class _MapsLine:
    """The line of one model's maps."""

    __pydantic_config__ = STRICT
    localisation: dict[str, Any]


def _read_file(path: Path) -> StudyRecord:
    try:
        first, *lines = path.read_text(encoding="utf-8").splitlines() or [""]
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: is neither a study folder nor a study record ({error})") from None
    header = parse_json(_Header, first, f"{path}, a study record, line 1")
    parse_json(RecordedSettings, json.dumps(header.settings), f"{path} line 1, settings")
    jobs, maps = [], {}
    for number, line in enumerate(lines, start=2):
        source = f"{path}, a study record, line {number}"
        if line.startswith(f'{{"{LOCALISATION}"'):
            result = parse_json(_MapsLine, line, source).localisation
            check_localisation({**result, PER_FILM: []}, source)
            maps[str(result["model"])] = result
        else:
            jobs.append(_job(parse_json(_JobLine, line, source), header.class_names, source))
    return StudyRecord(
        header.name,
        header.settings,
        header.data,
        header.environment,
        header.class_names,
        jobs,
        maps,
    )


def _job(line: _JobLine, class_names: tuple[str, ...], source: str) -> JobRecord:
    if any(len(row) != len(class_names) for row in line.logits):
        raise UserError(f"{source}: has not {len(class_names)} logits for each film")
    if not set(line.labels) <= set(range(len(class_names))):
        raise UserError(f"{source}: has a label that is none of 0 to {len(class_names) - 1}")
    predictions = Predictions(
        line.films,
        line.patients,
        (line.fold,) * len(line.films),
        np.array(line.labels, np.int64),
        np.array(line.logits, np.float64),
        class_names,
    )
    return JobRecord(line.model, line.repeat, line.fold, predictions, line.history)
