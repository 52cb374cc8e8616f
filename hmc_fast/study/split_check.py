"""A split that somebody else made: patients on both sides, and films that are there twice."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hmc_fast.data import Film, Preprocessing, film_image
from hmc_fast.data.mias import patient_in_name
from hmc_fast.errors import UserError
from hmc_fast.files import read_rows
from hmc_fast.progress import Progress, no_progress
from hmc_fast.schema import PART, read_json_as
from hmc_fast.study.near_duplicates import SIDE, near_duplicates

FILM_COLUMNS = ("film", "file", "path", "image")
SIDE_COLUMNS = ("split", "fold", "side", "set")


@dataclass(frozen=True)
class SplitFilm:
    """A row of the split file."""

    name: str
    side: str
    patient: str | None
    path: Path


@dataclass(frozen=True)
class Duplicate:
    """Two films on different sides that look like copies of one film."""

    first: str
    first_side: str
    second: str
    second_side: str
    correlation: float


@dataclass(frozen=True)
class SplitReport:
    """What is wrong with a split; ``shared_patients`` maps patients to their sides.

    ``unknown_patients`` counts films whose patient neither the file nor their name tells.
    """

    films: dict[str, int]
    shared_patients: dict[str, list[str]]
    unknown_patients: int
    duplicates: list[Duplicate]

    @property
    def leaks(self) -> bool:
        return bool(self.shared_patients or self.duplicates)


def check_split(
    path: Path,
    folder: Path,
    films: list[Film],
    on_progress: Progress = no_progress,
) -> SplitReport:
    """Check a split file about the films of ``folder``.

    The file is a CSV with a column ``film`` (a film's number, or a file relative to ``folder`` or
    to the split file), a column ``split`` or ``fold``, and if known ``patient``; or saved folds.

    Raises :class:`UserError` where the file cannot be read, names a film that is not there, or has
    one side only.
    """
    split = read_split(path, folder, films)
    counts: dict[str, int] = defaultdict(int)
    sides_of: dict[str, set[str]] = defaultdict(set)
    for film in split:
        counts[film.side] += 1
        if film.patient is not None:
            sides_of[film.patient].add(film.side)
    if len(counts) < 2:
        raise UserError(f"{path}: all films are on one side; a split needs at least two")
    return SplitReport(
        dict(counts),
        {patient: sorted(sides) for patient, sides in sorted(sides_of.items()) if len(sides) > 1},
        sum(film.patient is None for film in split),
        _look_alikes(split, on_progress),
    )


def copies_across_patients(
    films: Sequence[Film], on_progress: Progress = no_progress
) -> list[Duplicate]:
    """Films of different patients that look like copies of one film, the most alike first.

    Folds may put them on different sides, so that a model is tested on what it was trained on. The
    sides of a :class:`Duplicate` are the patients.
    """
    named = [SplitFilm(f.film_id, f.patient_id, f.patient_id, f.path) for f in films]
    return _look_alikes(named, on_progress)


def _look_alikes(films: Sequence[SplitFilm], on_progress: Progress) -> list[Duplicate]:
    preprocessing = Preprocessing.square(SIDE)
    pixels = []
    for film in films:
        pixels.append(film_image(film.path, preprocessing).image[0].numpy())
        on_progress("comparing films", 1, len(films))
    pairs = near_duplicates(pixels, [film.side for film in films])
    return [
        Duplicate(a.name, a.side, b.name, b.side, pair.correlation)
        for pair in pairs
        for a, b in [(films[pair.first], films[pair.second])]
    ]


def read_split(path: Path, folder: Path, films: list[Film]) -> list[SplitFilm]:
    """The rows of a split file with the films that they name."""
    by_id = {film.film_id: film for film in films}
    split = []
    for number, row in enumerate(_rows(path), start=1):
        name = _value(row, FILM_COLUMNS, path, number)
        side = _value(row, SIDE_COLUMNS, path, number)
        film = by_id.get(name)
        patient = row.get("patient") or (film.patient_id if film else patient_in_name(name))
        film_path = film.path if film else _find(name, folder, path, number)
        split.append(SplitFilm(name, side, patient, film_path))
    if not split:
        raise UserError(f"{path}: holds no film")
    return split


@dataclass(frozen=True)
class _SplitFile:
    """A fold file of ours, or any JSON file with such rows."""

    __pydantic_config__ = PART
    assignments: list[dict[str, str | int]]


def _rows(path: Path) -> list[dict[str, str]]:
    if path.suffix.lower() == ".json":
        rows = read_json_as(_SplitFile, path).assignments
        return [{key: str(value) for key, value in row.items()} for row in rows]
    return [row for _, row in read_rows(path)[1]]


def _value(row: dict[str, str], columns: tuple[str, ...], path: Path, number: int) -> str:
    for column in columns:
        if row.get(column):
            return row[column]
    raise UserError(f"{path} row {number}: has no value in a column named {' or '.join(columns)}")


def _find(name: str, folder: Path, split: Path, number: int) -> Path:
    for candidate in (folder / name, split.parent / name):
        if candidate.is_file():
            return candidate
    raise UserError(
        f"{split} row {number}: film {name!r} is neither in {folder} nor beside the file"
    )
