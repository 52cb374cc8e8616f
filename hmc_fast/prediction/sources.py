"""From what a person names, the films' files: files, folders, patterns, DICOMDIR, CSV tables."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from os.path import lexists, realpath
from pathlib import Path

from pydicom.fileset import FileSet

from hmc_fast.data.dicom import is_dicom
from hmc_fast.data.table import SIDES
from hmc_fast.errors import UserError
from hmc_fast.files import read_rows

FILM_SUFFIXES = (".dcm", ".pgm", ".png", ".tif", ".tiff", ".jpg", ".jpeg")
TABLE_SUFFIX = ".csv"
DICOMDIR = "DICOMDIR"
PATH_COLUMN = "path"
PATTERN_SIGNS = "*?["


@dataclass(frozen=True)
class Source:
    """A film's file; what a table says of it goes before its header."""

    path: Path
    patient: str | None = None
    side: str | None = None
    view: str | None = None


def find_sources(named: Sequence[Path]) -> list[Source]:
    """The films' files, each once, in the order in which they are named.

    A folder stands for all films below it, by their names in order, hidden ones left out; so does
    the folder of a DICOMDIR, of which only the films that it lists count. A pattern such as
    ``archive/**/*.dcm`` stands for the films that match it. A CSV table needs the column ``path``,
    relative to the table; its columns ``patient``, ``side`` and ``view`` go before the headers.

    Raises :class:`UserError` where a path is not there, a table cannot be read, or something named
    holds no film. No film is opened beyond its first bytes.
    """
    sources: dict[Path, Source] = {}
    missing: list[Path] = []
    for path in named:
        for source in _expand(path):
            sources.setdefault(Path(realpath(source.path)), source)  # resolve() raises in a loop
            if not lexists(source.path):
                missing.append(source.path)
    if missing:
        more = f" (and {len(missing) - 1} more that are missing)" if len(missing) > 1 else ""
        raise UserError(f"{missing[0]}: no such file{more}")
    return list(sources.values())


def _expand(path: Path) -> list[Source]:
    if path.is_dir():
        return _filled(path, _films_below(path))
    if path.is_file() and path.suffix.lower() == TABLE_SUFFIX:
        return _filled(path, _rows(path))
    if path.is_file() and path.name == DICOMDIR:
        return _filled(path, _listed(path))
    if not path.exists() and any(sign in str(path) for sign in PATTERN_SIGNS):
        return _filled(path, _matching(path))
    return [Source(path)]


def _filled(path: Path, sources: Iterator[Source]) -> list[Source]:
    films = list(sources)
    if not films:
        raise UserError(f"{path}: holds no film (PGM, PNG or DICOM)")
    return films


def _films_below(folder: Path) -> Iterator[Source]:
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") for part in path.relative_to(folder).parts)
        if not hidden and not path.is_dir() and _looks_like_film(path):
            yield Source(path)


def _looks_like_film(path: Path) -> bool:
    """By its name or first bytes.

    What is named like a film and cannot be opened, whatever it is, counts, so that it is reported.
    """
    if path.name == DICOMDIR:
        return False
    try:
        return path.suffix.lower() in FILM_SUFFIXES or (path.is_file() and is_dicom(path))
    except OSError:
        return True


def _matching(pattern: Path) -> Iterator[Source]:
    root = Path(pattern.anchor)
    try:
        matches = sorted(root.glob(str(pattern.relative_to(root))))
    except (ValueError, OSError) as error:
        raise UserError(f"{pattern}: is no pattern of file names ({error})") from None
    for path in matches:
        if path.is_dir():
            yield from _films_below(path)
        elif _looks_like_film(path):
            yield Source(path)


def _listed(dicomdir: Path) -> Iterator[Source]:
    try:
        films = FileSet(dicomdir)
    except Exception as error:  # a damaged directory can break the parser anywhere
        raise UserError(f"{dicomdir}: is no readable DICOMDIR ({error})") from None
    for instance in films:
        yield Source(Path(instance.path))


def _rows(table: Path) -> Iterator[Source]:
    header, rows = read_rows(table)
    if PATH_COLUMN not in header:
        raise UserError(f"{table}: lacks the column {PATH_COLUMN}")
    for line, cells in rows:
        yield _source(table, line, cells)


def _source(table: Path, line: int, row: dict[str, str]) -> Source:
    if not row[PATH_COLUMN]:
        raise UserError(f"{table} line {line}: has no path")
    side = row.get("side", "").lower()
    if side not in SIDES:
        raise UserError(f"{table} line {line}: side {row['side']!r} is neither L nor R")
    return Source(
        table.parent / row[PATH_COLUMN],
        row.get("patient") or None,
        SIDES[side],
        row.get("view", "").upper() or None,
    )
