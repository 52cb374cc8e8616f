"""The README's performance table, written from a committed record and nothing else.

Run as ``python -m hmc_fast.bench.report.readme README.md [RECORD]``, or by ``make readme-table``.
The text between the two marks is replaced, the rest of the file is left as it is.
"""

import argparse
from pathlib import Path

from hmc_fast.bench.jobs.targets import TARGET_HEADER, target_rows
from hmc_fast.bench.record import Record, read_record
from hmc_fast.errors import UserError
from hmc_fast.files import write_text

BEGIN = "<!-- performance table: made by `make readme-table`, do not edit -->"
END = "<!-- end of the performance table -->"


def performance_section(record: Record | None, source: str | None) -> str:
    """Markdown: the targets, what was measured, and on what. ``source`` is the record's path."""
    lines = [
        f"| {' | '.join(TARGET_HEADER)} |",
        "|" + "---|" * len(TARGET_HEADER),
        *(f"| {' | '.join(row)} |" for row in target_rows(record)),
        "",
    ]
    if record is None:
        return "\n".join([*lines, "No record of a GPU is committed yet.", ""])
    packages = record.environment.get("packages", {})
    made_with = f"torch {packages.get('torch')}, triton {packages.get('triton')}"
    revision, command = (record.environment.get(name) for name in ("git_revision", "command"))
    lines.append(
        f"{record.device.get('name')}, {made_with}, revision {revision}. "
        f"Record: [`{Path(str(source)).name}`]({source}), made by `{command}`."
    )
    return "\n".join([*lines, ""])


def update_readme(readme: Path, record_path: Path | None) -> bool:
    """Replace the marked region; returns whether the file changed.

    Raises :class:`UserError` where the file or its marks are missing, or the record is damaged:
    what a README says must come from a whole record.
    """
    try:
        text = readme.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{readme}: cannot be read ({error.strerror})") from None
    if text.count(BEGIN) != 1 or text.count(END) != 1 or text.index(BEGIN) > text.index(END):
        raise UserError(f"{readme}: needs the lines {BEGIN} and {END}, once each, in this order")
    record = None if record_path is None else read_record(record_path)
    if record is not None and record.problems:
        raise UserError(record.problems[0])
    before, rest = text.split(BEGIN)
    _, after = rest.split(END)
    source = None if record_path is None else record_path.as_posix()
    changed = f"{before}{BEGIN}\n\n{performance_section(record, source)}\n{END}{after}"
    if changed == text:
        return False
    write_text(readme, changed)
    return True


def main() -> None:
    """Entry point of ``make readme-table``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("readme", type=Path)
    parser.add_argument("record", type=Path, nargs="?")
    arguments = parser.parse_args()
    try:
        changed = update_readme(arguments.readme, arguments.record)
    except UserError as error:
        parser.exit(1, f"{error}\n")
    print(f"{arguments.readme}: {'updated' if changed else 'is up to date'}")


if __name__ == "__main__":
    main()
