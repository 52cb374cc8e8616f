"""Where a study keeps its files, and how several processes share them.

study.json                      settings; the first process writes them, the others compare
folds.json, folds.csv           and folds_repeat1.json ... for further repeats
MODEL/fold0/                    model.safetensors, predictions.csv, history.csv, result.json
MODEL/repeat1/fold0/            the same of a further repeat
MODEL/out_of_fold.csv           and MODEL/repeat1/out_of_fold.csv ...
summary.json
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated, Any

from filelock import FileLock, Timeout
from pydantic import Field

from hmc_fast.data import Folds, read_folds
from hmc_fast.errors import UserError
from hmc_fast.files import make_folder, write_json
from hmc_fast.schema import PART, STRICT, read_json_as
from hmc_fast.training.config import TrainingConfig
from hmc_fast.training.train import MODEL_FILE

STUDY_FILE = "study.json"
FOLDS_FILE = "folds.json"
OUT_OF_FOLD_FILE = "out_of_fold.csv"
SUMMARY_FILE = "summary.json"
LOCK_FILE = ".lock"
OPENING_SECONDS = 60
"""Writing settings and folds takes far less; a lock held longer belongs to something else."""


@dataclass(frozen=True)
class StudySettings:
    """What all jobs of a study share: training, protocol, folds and repeats.

    Repeat ``r`` is the study of seed ``config.seed + r``: other folds, other initial parameters.
    ``copies`` is the number of rotated copies a film.
    """

    config: TrainingConfig
    protocol: str
    fold_count: int
    repeats: int
    copies: int

    def to_json(self) -> dict[str, Any]:
        return {
            "config": self.config.to_json(),
            "protocol": self.protocol,
            "folds": self.fold_count,
            "repeats": self.repeats,
            "copies": self.copies,
        }


@dataclass(frozen=True)
class RecordedSettings:
    """What of a study's settings every record of it has, older ones too."""

    __pydantic_config__ = PART
    config: dict[str, Any]
    protocol: str
    folds: Annotated[int, Field(ge=2)]
    repeats: Annotated[int, Field(ge=1)]


@dataclass(frozen=True)
class StoredSettings(RecordedSettings):
    """The file :data:`STUDY_FILE`: :meth:`StudySettings.to_json`, and what the films are."""

    __pydantic_config__ = STRICT
    copies: int
    data: dict[str, Any]


def read_settings(folder: Path) -> StoredSettings:
    """Raises :class:`UserError` where they are missing or damaged."""
    return read_json_as(StoredSettings, folder / STUDY_FILE)


def fold_folder(folder: Path, model: str, fold: int, repeat: int = 0) -> Path:
    """Where the job of one model, repeat and fold keeps its files."""
    return repeat_folder(folder, model, repeat) / f"fold{fold}"


def repeat_folder(folder: Path, model: str, repeat: int) -> Path:
    """Where a model's folds of one repeat are."""
    return folder / model / f"repeat{repeat}" if repeat else folder / model


def folds_path(folder: Path, repeat: int) -> Path:
    """The folds of one repeat."""
    return folder / (f"folds_repeat{repeat}.json" if repeat else FOLDS_FILE)


def fold_checkpoints(folder: Path, model: str) -> list[Path]:
    """The checkpoints of all folds of a finished study's first repeat."""
    count = read_folds(folder / FOLDS_FILE).count
    return [fold_folder(folder, model, fold) / MODEL_FILE for fold in range(count)]


def open_study(
    folder: Path, settings: StudySettings, folds: list[Folds], data: dict[str, Any]
) -> None:
    """Record settings and folds in a new folder; compare with an old one's.

    ``data`` describes the films and is recorded alone: the folder of the films may move.

    Raises :class:`UserError` where the folder holds another study.
    """
    make_folder(folder)
    try:
        with FileLock(folder / LOCK_FILE, timeout=OPENING_SECONDS):
            _open(folder, settings, folds, data)
    except Timeout:
        raise UserError(
            f"{folder}: another process has locked this study for {OPENING_SECONDS} s; end it, or "
            "use another folder"
        ) from None


@contextmanager
def job_lock(folder: Path, *, wait: bool) -> Iterator[bool]:
    """Hold the lock of a job's folder; yields False where another process has it.

    The system frees the lock of a process that dies.
    """
    make_folder(folder)
    lock = FileLock(folder / LOCK_FILE, timeout=-1 if wait else 0)
    try:
        lock.acquire()
    except Timeout:
        yield False
        return
    try:
        yield True
    finally:
        lock.release()


def _open(folder: Path, settings: StudySettings, folds: list[Folds], data: dict[str, Any]) -> None:
    path = folder / STUDY_FILE
    if not path.is_file():
        foreign = [*folder.glob(SUMMARY_FILE), *folder.glob(f"*/{OUT_OF_FOLD_FILE}")]
        tables = folder.glob("folds*.csv")  # those beside a .json are compared with it
        foreign += [table for table in tables if not table.with_suffix(".json").is_file()]
        if foreign:
            raise UserError(
                f"{foreign[0]}: is of no study that began here, and is not overwritten; use "
                "another folder"
            )
        for repeat, partition in enumerate(folds):
            file = folds_path(folder, repeat)
            if file.is_file():  # a kill may have left it
                _check_folds(folder, file, partition)
            partition.save(file)
        write_json(path, {**settings.to_json(), "data": data})
        return
    changed = _changes(asdict(read_settings(folder)), settings.to_json())
    if changed:
        raise UserError(
            f"{folder}: holds a study with other settings ({'; '.join(changed)}); "
            "use another folder, or the old settings to continue"
        )
    for repeat, partition in enumerate(folds):
        _check_folds(folder, folds_path(folder, repeat), partition)


def _check_folds(folder: Path, file: Path, partition: Folds) -> None:
    if read_folds(file).assignments != partition.assignments:
        raise UserError(f"{folder}: holds a study with other folds or films; use another folder")


def _changes(old: dict[str, Any], new: dict[str, Any]) -> list[str]:
    # Settings that a release did not have yet are what it did without being asked.
    old_config = {**TrainingConfig().to_json(), **old.get("config", {})}
    new_config = new["config"]
    pairs = [(key, old_config.get(key), value) for key, value in new_config.items()]
    pairs += [(key, old.get(key), value) for key, value in new.items() if key != "config"]
    return [f"{key} {was!r} there, {now!r} now" for key, was, now in pairs if was != now]
