"""A script that measures something, keeps it in a record, and shows it in a page.

Used by the scripts behind ``make readme-table``::

    SCRIPT RECORD.json [PAGE]            measures and writes the record, then the page's table
    SCRIPT --table RECORD.json PAGE      writes the table alone
"""

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import Any

from hmc_fast.errors import UserError
from hmc_fast.files import read_json, write_json, write_text


def run_script(
    description: str | None,
    measure: Callable[[], dict[str, Any]],
    updated: Callable[[str, dict[str, Any]], str],
) -> None:
    """Do what the command line asks.

    ``measure`` makes the record; ``updated(text, record)`` is a page's text with the table in it.
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("record", type=Path)
    parser.add_argument("page", type=Path, nargs="?")
    parser.add_argument("--table", action="store_true", help="measure nothing")
    given = parser.parse_args()
    try:
        if given.page is not None:
            given.page.read_text(encoding="utf-8")  # not after minutes of measuring
        if not given.table:
            write_json(given.record, measure())
        if given.page is not None:
            text = given.page.read_text(encoding="utf-8")
            write_text(given.page, updated(text, read_json(given.record)))
    except OSError as error:
        parser.exit(1, f"{parser.prog}: {error.filename}: {error.strerror}\n")
    except UserError as error:
        parser.exit(1, f"{parser.prog}: {error}\n")
