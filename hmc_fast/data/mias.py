"""The mini-MIAS database (Suckling et al. 1994) as distributed: ``mdbNNN.pgm`` and ``Info.txt``.

Films ``2k-1`` and ``2k`` are the two breasts of one patient. PNG files of the same names are read
as well.
"""

import codecs
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hmc_fast.data.films import Film, Finding, Severity
from hmc_fast.data.phantom import phantoms_of
from hmc_fast.data.pixels import film_header
from hmc_fast.errors import UserError

TISSUES = {"F": "fatty", "G": "fatty-glandular", "D": "dense-glandular"}
KINDS = ("CALC", "CIRC", "SPIC", "MISC", "ARCH", "ASYM")
NORMAL = "NORM"
COLLECTION = "MIAS"
INFO_FILE = "Info.txt"
VIEW = "MLO"
"""The projection of all MIAS films."""
SEVERITIES: dict[str, Severity] = {"B": "benign", "M": "malignant"}
SUFFIXES = (".pgm", ".png")
_FILM_ID = re.compile(r"mdb([0-9]{3,9})")


def read_mias(folder: Path, *, allow_missing: bool = False) -> list[Film]:
    """All films of a MIAS folder with their findings, in the order of their numbers.

    ``allow_missing`` passes over rows without their film, so that a subset can be read, see
    :func:`missing_films`.

    Raises :class:`UserError` for a missing folder or ``Info.txt``, an unknown code, rows of a film
    that contradict each other, a circle outside of its film, a row without its film, a film without
    a row, or a film that is there twice.
    """
    info = folder / INFO_FILE
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; name one with mdbNNN.pgm films and Info.txt")
    if not info.is_file():
        raise UserError(f"{folder}: has no Info.txt, so it is not a MIAS folder")
    films, rows = _films(folder), _read_info(info)
    for film_id, row in rows.items():
        if film_id in films:
            _check_circles(info, row, films[film_id])
        elif not allow_missing:
            raise UserError(
                f"{info} line {row.line}: {film_id} has a row but no film in {folder}; "
                "cv, train, evaluate and localise take a subset with --allow-missing"
            )
    for film_id, path in films.items():
        if film_id not in rows:
            raise UserError(f"{path}: the film has no row in {info}")
    if not films:
        raise UserError(f"{folder}: holds no mdbNNN.pgm or mdbNNN.png film")
    return [
        Film(
            film_id,
            patient_of(film_id),
            films[film_id],
            tuple(rows[film_id].findings),
            tissue=rows[film_id].tissue,
            side=side_of(film_id),
            view=VIEW,
            collection=phantoms_of(folder) or COLLECTION,
        )
        for film_id in sorted(films, key=_number)
    ]


def missing_films(folder: Path) -> int:
    """How many films have a row in the folder's ``Info.txt`` and no file; 0 without one.

    Raises :class:`UserError` as :func:`read_findings`.
    """
    info = folder / INFO_FILE
    return len(_read_info(info).keys() - _films(folder).keys()) if info.is_file() else 0


def read_findings(info: Path) -> dict[str, tuple[Finding, ...]]:
    """The findings of every film with a row in an ``Info.txt``, whether the film is there or not.

    Raises :class:`UserError` where the file cannot be read, holds an unknown code, or rows that
    contradict each other.
    """
    return {film_id: tuple(row.findings) for film_id, row in _read_info(info).items()}


def is_film_id(name: str) -> bool:
    """Whether ``name`` is a film's number, like ``mdb001``."""
    return _FILM_ID.fullmatch(name) is not None


def patient_of(film_id: str) -> str:
    """MIAS numbers films in pairs: 2k-1 and 2k belong to patient k-1, as ``"p000"`` onwards."""
    return f"p{(_number(film_id) - 1) // 2:03d}"


def side_of(film_id: str) -> Literal["L", "R"]:
    """The breast that a film shows: the left one on even numbers, the right one on odd ones."""
    return "R" if _number(film_id) % 2 else "L"


def patient_in_name(name: str) -> str | None:
    """The patient of a file whose name holds a MIAS number, like ``mdb001_rot90.png``; or None."""
    match = _FILM_ID.search(Path(name).name)
    return None if match is None else patient_of(match.group())


def _number(film_id: str) -> int:
    match = _FILM_ID.fullmatch(film_id)
    if match is None:
        raise UserError(f"{film_id!r} is not a MIAS film number like mdb001")
    return int(match.group(1))


def _films(folder: Path) -> dict[str, Path]:
    films: dict[str, Path] = {}
    for path in sorted(folder.iterdir()):
        if path.suffix.lower() in SUFFIXES and _FILM_ID.fullmatch(path.stem):
            if path.stem in films:
                raise UserError(f"{path}: film {path.stem} is there twice, keep one of the files")
            films[path.stem] = path
    return films


@dataclass
class _Row:
    """The rows of one film: the line of the first, and the findings of all."""

    line: int
    tissue: str
    findings: list[Finding]


def _read_info(info: Path) -> dict[str, _Row]:
    rows: dict[str, _Row] = {}
    for line_number, line in enumerate(_lines(info), start=1):
        fields = line.split()
        if not fields or not is_film_id(fields[0]):
            continue
        try:
            finding = _finding(fields[1:])
            tissue = TISSUES[fields[1]]
            known = rows.get(fields[0])
            if known is None:
                findings = [] if finding is None else [finding]
                rows[fields[0]] = _Row(line_number, tissue, findings)
            elif finding is None or not known.findings:
                raise ValueError(f"a second row of {fields[0]}, one of them {NORMAL},")
            elif known.tissue != tissue:
                raise ValueError(f"{fields[0]} had the tissue {known.tissue} in line {known.line};")
            else:
                known.findings.append(finding)
        except ValueError as error:
            shown = line.strip()[:80]
            raise UserError(f"{info} line {line_number}: {error} in {shown!r}") from None
    return rows


def _lines(info: Path) -> list[str]:
    try:
        content = info.read_bytes()
    except OSError as error:
        raise UserError(f"{info}: cannot be read ({error.strerror})") from None
    if content.startswith((codecs.BOM_UTF16_LE, codecs.BOM_UTF16_BE)):
        raise UserError(f"{info}: is UTF-16; save it as plain text")
    return content.removeprefix(codecs.BOM_UTF8).decode("latin-1").splitlines()


def _check_circles(info: Path, row: _Row, path: Path) -> None:
    for finding in row.findings:
        if finding.x is None or finding.y is None:
            continue
        rows, columns, *_ = film_header(path)
        if not (finding.x < columns and finding.y < rows and finding.radius):
            raise UserError(
                f"{info}: the circle of {path.stem} at {finding.x}, {finding.y} with radius "
                f"{finding.radius} is empty or outside of its {columns}x{rows} pixels"
            )


def _finding(fields: list[str]) -> Finding | None:
    if len(fields) < 2:
        raise ValueError("tissue or class is missing")
    tissue, kind, *rest = fields
    if tissue not in TISSUES:
        raise ValueError(f"unknown tissue code {tissue!r} (F, G or D)")
    if kind == NORMAL:
        if rest and not rest[0].startswith("*"):
            raise ValueError(f"a finding behind {NORMAL}")
        return None
    if kind not in KINDS:
        raise ValueError(f"unknown class code {kind!r} ({NORMAL}, {', '.join(KINDS)})")
    if not rest or rest[0] not in SEVERITIES:
        raise ValueError(f"unknown severity {rest[0] if rest else ''!r} (B or M)")
    severity, position = SEVERITIES[rest[0]], rest[1:]
    if not position or position[0] == "*NOTE":
        return Finding(kind, severity)
    if len(position) != 3 or not all(v.isdecimal() and len(v) < 10 for v in position):
        raise ValueError("x, y and radius must be three whole numbers")
    x, y, radius = map(int, position)
    return Finding(kind, severity, x, y, radius)
