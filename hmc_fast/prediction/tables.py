"""Results as CSV or Parquet, row by row, so that memory does not grow with the archive."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from hmc_fast.errors import UserError
from hmc_fast.files import write_atomically, write_rows
from hmc_fast.prediction.levels import Result, predicted_class
from hmc_fast.prediction.parts import ODD_NAMES

SUFFIXES = (".csv", ".parquet")
_TEXTS = ("patient", "side", "view", "file", "sop_instance_uid", "sha256")
ROWS_A_GROUP = 10_000


def check_table(path: Path) -> None:
    """Raises :class:`UserError` for a table of another kind, or one that nothing here can write."""
    if path.suffix.lower() not in SUFFIXES:
        raise UserError(f"--out {path}: needs a name that ends in {' or '.join(SUFFIXES)}")
    if path.is_dir():
        raise UserError(f"--out {path}: is a folder, give the table's name")
    if path.suffix.lower() == ".parquet":
        _pyarrow()


def columns(class_names: Sequence[str]) -> list[str]:
    """Names of the columns: texts, a probability for each class, texts."""
    return [*_TEXTS, *(f"probability_{c}" for c in class_names), "predicted", "rule", "error"]


def write_table(
    path: Path, results: Iterable[Result], class_names: Sequence[str], threshold: float | None
) -> None:
    """Write results atomically, by the suffix as CSV or Parquet.

    A row with an error has no probabilities and no predicted class. Raises :class:`UserError` where
    the disk refuses, and what the iteration over ``results`` raises.
    """
    rows = (_row(result, class_names, threshold) for result in results)
    write = _write_parquet if path.suffix.lower() == ".parquet" else _write_csv
    write_atomically(path, lambda temporary: write(temporary, rows, class_names))


def _row(result: Result, class_names: Sequence[str], threshold: float | None) -> list[Any]:
    probabilities: Sequence[float | None] = result.probabilities or [None] * len(class_names)
    predicted = class_names[predicted_class(result.probabilities, threshold)] if (
        result.probabilities
    ) else ""  # fmt: skip
    texts = [getattr(result, name) for name in _TEXTS]
    return [*texts, *probabilities, predicted, result.rule, result.error]


def _write_csv(path: Path, rows: Iterable[list[Any]], class_names: Sequence[str]) -> None:
    with path.open("w", newline="", encoding="utf-8", errors=ODD_NAMES) as file:
        write_rows(file, [columns(class_names)])
        write_rows(file, rows)


def _write_parquet(path: Path, rows: Iterable[list[Any]], class_names: Sequence[str]) -> None:
    arrow, parquet = _pyarrow()
    numbers = {f"probability_{name}" for name in class_names}
    schema = arrow.schema(
        [(n, arrow.float64() if n in numbers else arrow.string()) for n in columns(class_names)]
    )
    with parquet.ParquetWriter(path, schema) as writer:
        for group in _groups(rows):
            cells = [_plain(column) for column in zip(*group, strict=True)]
            writer.write_table(arrow.table(cells, schema=schema))


def _groups(rows: Iterable[list[Any]]) -> Iterable[list[list[Any]]]:
    group: list[list[Any]] = []
    for row in rows:
        group.append(row)
        if len(group) == ROWS_A_GROUP:
            yield group
            group = []
    if group:
        yield group


def _plain(cells: Sequence[Any]) -> list[Any]:
    """Parquet's texts are UTF-8; bytes of file names that are none are spelled out."""
    return [
        cell.encode("utf-8", "backslashreplace").decode() if isinstance(cell, str) else cell
        for cell in cells
    ]


def _pyarrow() -> tuple[Any, Any]:
    try:
        import pyarrow
        from pyarrow import parquet
    except ImportError as error:
        raise UserError(
            f"Parquet needs pyarrow ({error}); pip install 'hmc-fast[batch]', or write .csv"
        ) from None
    return pyarrow, parquet
