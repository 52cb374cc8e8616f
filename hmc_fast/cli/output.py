"""Shared output: tables and progress for people on stderr or stdout, JSON for scripts."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import rich.progress
from rich.console import Console
from rich.markup import escape
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)
from rich.table import Table

from hmc_fast.progress import Progress

console = Console()
errors = Console(stderr=True)
"""For what went wrong, and for warnings."""
progress = Console(stderr=True)
"""For what is being done; --quiet silences it."""


@contextmanager
def progress_bar(unit: str) -> Iterator[Progress]:
    """A bar on stderr that counts ``unit``; a line a step where stderr is no terminal.

    Nothing under --quiet.
    """
    bar = rich.progress.Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn(unit),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=progress,
        disable=progress.quiet or not progress.is_terminal,
    )
    with bar:
        task = bar.add_task("", total=None)
        last = ""

        def report(description: str, done: int, total: int) -> None:
            nonlocal last
            if bar.disable and description != last:
                progress.print(description, markup=False, highlight=False)
                last = description
            bar.update(task, description=description, total=total, advance=done)

        yield report


def printable(text: str) -> str:
    """Text from files as a terminal may get it: control characters and odd bytes are spelled out.

    Lines stay lines.
    """
    return "".join(
        c if c.isprintable() or c == "\n" else c.encode("unicode_escape").decode() for c in text
    )


def print_json(values: Any) -> None:
    """One JSON document on stdout."""
    print(json.dumps(values, indent=2, allow_nan=False))


def print_table(header: list[str], rows: list[list[str]], title: str | None = None) -> None:
    """A table on stdout, wide enough for its columns where stdout is no terminal."""
    grid = Table(*header, title=title, title_justify="left", header_style="bold")
    for row in rows:
        grid.add_row(*(escape(printable(cell)) for cell in row))
    (console if console.is_terminal else Console(width=200)).print(grid)
