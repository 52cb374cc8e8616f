"""The mini-MIAS database (Suckling et al. 1994) as distributed: ``mdbNNN.pgm`` and ``Info.txt``.

Films ``2k-1`` and ``2k`` are the two breasts of one patient. PNG files of the same names are read
as well.
"""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from hmc_fast.data.films import Film, Finding, Severity
from hmc_fast.data.phantom import phantoms_of
from hmc_fast.errors import UserError

TISSUES = {"F": "fatty", "G": "fatty-glandular", "D": "dense-glandular"}
KINDS = ("CALC", "CIRC", "SPIC", "MISC", "ARCH", "ASYM")
NORMAL = "NORM"
COLLECTION = "MIAS"
VIEW = "MLO"
"""The projection of all MIAS films."""
SEVERITIES: dict[str, Severity] = {"B": "benign", "M": "malignant"}
SUFFIXES = (".pgm", ".png")
_FILM_ID = re.compile(r"mdb(\d{3,})")


def read_mias(folder: Path) -> list[Film]:
    """All films of a MIAS folder with their findings, in the order of their numbers.

    Raises :class:`UserError` for a missing folder or ``Info.txt``, an unknown code, a row without
    its film, a film without a row, or a film that is there twice.
    """
    info = folder / "Info.txt"
    if not folder.is_dir():
        raise UserError(f"{folder}: no such folder; name one with mdbNNN.pgm films and Info.txt")
    if not info.is_file():
        raise UserError(f"{folder}: has no Info.txt, so it is not a MIAS folder")
    films = _films(folder)
    findings: dict[str, list[Finding]] = {}
    tissues: dict[str, str] = {}
    for line_number, film_id, tissue, finding in _rows(info):
        if film_id not in films:
            raise UserError(
                f"{info} line {line_number}: {film_id} has a row but no film in {folder}"
            )
        findings.setdefault(film_id, [])
        tissues[film_id] = tissue
        if finding is not None:
            findings[film_id].append(finding)
    for film_id in films:
        if film_id not in findings:
            raise UserError(f"{films[film_id]}: the film has no row in {info}")
    if not films:
        raise UserError(f"{folder}: holds no mdbNNN.pgm or mdbNNN.png film")
    return [
        Film(
            film_id,
            patient_of(film_id),
            films[film_id],
            tuple(findings[film_id]),
            tissue=tissues[film_id],
            side=side_of(film_id),
            view=VIEW,
            collection=phantoms_of(folder) or COLLECTION,
        )
        for film_id in sorted(films, key=_number)
    ]


def read_findings(info: Path) -> dict[str, tuple[Finding, ...]]:
    """The findings of every film with a row in an ``Info.txt``, whether the film is there or not.

    Raises :class:`UserError` where the file cannot be read or holds an unknown code.
    """
    findings: dict[str, tuple[Finding, ...]] = {}
    for _, film_id, _, finding in _rows(info):
        findings[film_id] = findings.get(film_id, ()) + ((finding,) if finding else ())
    return findings


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


def _rows(info: Path) -> Iterator[tuple[int, str, str, Finding | None]]:
    try:
        lines = info.read_text(encoding="latin-1").splitlines()
    except OSError as error:
        raise UserError(f"{info}: cannot be read ({error.strerror})") from None
    for line_number, line in enumerate(lines, start=1):
        fields = line.split()
        if fields and _FILM_ID.fullmatch(fields[0]):
            try:
                finding = _finding(fields[1:])
            except ValueError as error:
                raise UserError(f"{info} line {line_number}: {error} in {line.strip()!r}") from None
            yield line_number, fields[0], TISSUES[fields[1]], finding


def _finding(fields: list[str]) -> Finding | None:
    if len(fields) < 2:
        raise ValueError("tissue or class is missing")
    tissue, kind, *rest = fields
    if tissue not in TISSUES:
        raise ValueError(f"unknown tissue code {tissue!r} (F, G or D)")
    if kind == NORMAL:
        return None
    if kind not in KINDS:
        raise ValueError(f"unknown class code {kind!r} ({NORMAL}, {', '.join(KINDS)})")
    if not rest or rest[0] not in SEVERITIES:
        raise ValueError(f"unknown severity {rest[0] if rest else ''!r} (B or M)")
    severity, position = SEVERITIES[rest[0]], rest[1:]
    if not position or position[0] == "*NOTE":
        return Finding(kind, severity)
    if len(position) != 3 or not all(value.isdigit() for value in position):
        raise ValueError("x, y and radius must be three whole numbers")
    x, y, radius = map(int, position)
    return Finding(kind, severity, x, y, radius)
