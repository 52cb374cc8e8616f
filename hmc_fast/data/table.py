"""Films of any data set from a CSV table, one row a film or a finding.

Columns ``path`` (relative to the table), ``patient`` and ``label`` (normal, benign or malignant)
are needed. ``side`` (L or R) and ``view`` (such as MLO) let a patient's breasts be compared.
``kind``, and either ``x``, ``y`` and ``radius`` or ``left``, ``top``, ``right`` and ``bottom``,
place a lesion, in pixels of the film from its upper left; further rows of the same path are further
lesions. ``tissue`` says how dense the breast is. ``collection`` names the patients' hospital or
data set, so that patients of the same name elsewhere are others.
"""

import math
from pathlib import Path

from hmc_fast.data.films import SEVERITIES, Film, Finding, Severity
from hmc_fast.data.mias import read_mias
from hmc_fast.data.pixels import film_header
from hmc_fast.errors import UserError
from hmc_fast.files import read_rows

NEEDED = ("path", "patient", "label")
CIRCLE = ("x", "y", "radius")
BOX = ("left", "top", "right", "bottom")
OPTIONAL = ("side", "view", "kind", "tissue", "collection", *CIRCLE, *BOX)
SIDES = {"l": "L", "left": "L", "r": "R", "right": "R", "": None}
ANY_KIND = "MISC"
"""MIAS's name for an abnormality of no kind that has a name."""


def read_films(data: Path, *, allow_missing: bool = False) -> list[Film]:
    """The films of a MIAS folder, or of a table where ``data`` is a CSV file.

    ``allow_missing`` takes a subset of MIAS, see :func:`hmc_fast.data.read_mias`.

    Raises :class:`UserError` as :func:`hmc_fast.data.read_mias` and :func:`read_table`.
    """
    if data.suffix.lower() == ".csv":
        return read_table(data)
    return read_mias(data, allow_missing=allow_missing)


def read_table(table: Path) -> list[Film]:
    """The films of a table, in its order.

    Raises :class:`UserError` for the first row that cannot be used, with its line.
    """
    films: dict[Path, Film] = {}
    names: dict[str, Path] = {}
    header, rows = read_rows(table)
    _check_header(table, header)
    for line, row in rows:
        try:
            film = _film(row, table.parent)
        except ValueError as error:
            raise UserError(f"{table} line {line}: {error}") from None
        known = films.get(film.path)
        if known is None:
            if names.setdefault(film.film_id, film.path) != film.path:
                raise UserError(
                    f"{table} line {line}: a film of the name {film.film_id} is there already "
                    f"({names[film.film_id]}); rename one of the files"
                )
            films[film.path] = film
            continue
        if (known.patient_id, known.side, known.view) != (film.patient_id, film.side, film.view):
            raise UserError(
                f"{table} line {line}: {film.path} had another patient, side or view before"
            )
        if not (known.findings and film.findings):
            raise UserError(f"{table} line {line}: {film.path} is normal and has a finding")
        findings = (*known.findings, *film.findings)
        films[film.path] = Film(**{**vars(known), "findings": findings})
    if not films:
        raise UserError(f"{table}: holds no film")
    return list(films.values())


def _check_header(table: Path, header: list[str]) -> None:
    missing = [name for name in NEEDED if name not in header]
    if missing:
        raise UserError(f"{table}: lacks the column {missing[0]}; needed are {', '.join(NEEDED)}")
    unknown = [name for name in header if name not in (*NEEDED, *OPTIONAL)]
    if unknown:
        raise UserError(
            f"{table}: has an unknown or doubled column {unknown[0]!r}; known are "
            f"{', '.join((*NEEDED, *OPTIONAL))}"
        )


def _film(row: dict[str, str], folder: Path) -> Film:
    """Raises ``ValueError`` where a row cannot be used."""
    for name in NEEDED:
        if not row[name]:
            raise ValueError(f"has no {name}")
    path = folder / row["path"]
    try:
        there = path.is_file()
    except OSError as error:
        raise ValueError(f"{path}: cannot be read ({error.strerror})") from None
    if not there:
        raise ValueError(f"{path}: no such film")
    label = row["label"].lower()
    if label not in SEVERITIES:
        raise ValueError(f"label {row['label']!r} is none of {', '.join(SEVERITIES)}")
    side = row.get("side", "").lower()
    if side not in SIDES:
        raise ValueError(f"side {row['side']!r} is neither L nor R")
    return Film(
        path.stem,
        row["patient"],
        path,
        _findings(row, path, label),
        tissue=row.get("tissue") or None,
        side=SIDES[side],
        view=row.get("view", "").upper() or None,
        collection=row.get("collection", ""),
    )


def _findings(row: dict[str, str], path: Path, label: str) -> tuple[Finding, ...]:
    circle = _circle(row)
    if label == "normal":
        if circle is not None or row.get("kind"):
            raise ValueError("a normal film has no lesion; its label is benign or malignant")
        return ()
    kind = row.get("kind", "").upper() or ANY_KIND
    severity: Severity = "benign" if label == "benign" else "malignant"
    if circle is None:
        return (Finding(kind, severity),)
    x, y, radius = circle
    rows, columns, *_ = film_header(path)
    if not (0 <= x < columns and 0 <= y < rows):
        raise ValueError(f"the lesion at {x:g}, {y:g} lies outside of {columns}x{rows} pixels")
    return (Finding(kind, severity, round(x), rows - 1 - round(y), max(1, round(radius))),)


def _circle(row: dict[str, str]) -> tuple[float, float, float] | None:
    """Centre and radius from the upper left; a box gives the circle of its longer side."""
    circle = [row.get(name, "") for name in CIRCLE]
    box = [row.get(name, "") for name in BOX]
    for cells, names in ((circle, CIRCLE), (box, BOX)):
        if any(cells) and not all(cells):
            raise ValueError(f"a lesion needs {', '.join(names)}, or none of them")
    if any(circle) and any(box):
        raise ValueError("has a circle and a box; give one of them")
    if any(circle):
        x, y, radius = map(_number, circle)
    elif any(box):
        left, top, right, bottom = map(_number, box)
        if not (left < right and top < bottom):
            raise ValueError("the box is empty; left < right and top < bottom are needed")
        x, y = (left + right) / 2, (top + bottom) / 2
        radius = max(right - left, bottom - top) / 2
    else:
        return None
    if not radius > 0:
        raise ValueError(f"radius {radius:g} is not positive")
    return x, y, radius


def _number(cell: str) -> float:
    try:
        value = float(cell)
    except ValueError:
        raise ValueError(f"{cell!r} is no number") from None
    if not math.isfinite(value):
        raise ValueError(f"{cell!r} is no number")
    return value
