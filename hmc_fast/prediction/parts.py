"""One file of scores for each chunk, written whole or not at all."""

import csv
import hashlib
import io
from collections.abc import Sequence
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any

from hmc_fast.errors import UserError
from hmc_fast.files import write_atomically, write_rows
from hmc_fast.prediction.manifest import Chunk, Entry
from hmc_fast.prediction.scores import FilmScore

ODD_NAMES = "surrogateescape"
"""File names need not be UTF-8; with this handler of errors they come back as they were."""
_ENTRY_COLUMNS = [field.name for field in fields(Entry)]


def part_path(folder: Path, chunk: Chunk) -> Path:
    """Where the chunk's scores are kept."""
    return folder / f"part-{chunk.id}.csv"


def write_part(
    folder: Path, chunk: Chunk, scores: Sequence[FilmScore], class_names: Sequence[str]
) -> None:
    """Keep a chunk's scores to the last bit; raises :class:`UserError` where the disk refuses.

    The last line is the SHA-256 of those above it.
    """
    table = io.StringIO()
    rows: list[list[Any]] = [[*_ENTRY_COLUMNS, "rule", "error", *class_names]]
    for score in scores:
        probabilities = score.probabilities or [""] * len(class_names)
        rows.append([*astuple(score.entry), score.rule, score.error, *probabilities])
    write_rows(table, rows)
    content = table.getvalue().encode("utf-8", ODD_NAMES)
    write_atomically(
        part_path(folder, chunk),
        lambda temporary: temporary.write_bytes(content + _digest(content)),
    )


def read_part(folder: Path, chunk: Chunk, class_names: Sequence[str]) -> list[FilmScore]:
    """A chunk's scores; raises :class:`UserError` where they are not those of its films."""
    path = part_path(folder, chunk)
    count = len(_ENTRY_COLUMNS)
    try:
        whole = path.read_bytes()
        content = whole[: whole.rstrip(b"\n").rfind(b"\n") + 1]
        if whole != content + _digest(content):
            raise ValueError("its last line, which is not the SHA-256 of the others")
        header, *rows = csv.reader(io.StringIO(content.decode("utf-8", ODD_NAMES), newline=""))
        scores = []
        for row in rows:
            rule, error, *cells = row[count:]
            probabilities = () if error else tuple(map(float, cells))
            scores.append(FilmScore(Entry(*row[:count]), probabilities, rule, error))
        if header[count + 2 :] != list(class_names):
            raise ValueError("its classes")
        if tuple(score.entry for score in scores) != chunk.entries:
            raise ValueError("its films")
    except (OSError, ValueError, TypeError, csv.Error) as error:
        raise UserError(f"{path}: is damaged (problem with {error}); remove it") from None
    return scores


def _digest(content: bytes) -> bytes:
    return f"{hashlib.sha256(content).hexdigest()}\n".encode()
