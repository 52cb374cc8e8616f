"""The tables of speed in README and docs, written from committed records and nothing else.

Run by ``make readme-table``. The text between two marks is replaced, the rest of the file is left
alone.
"""

import argparse
import os
from collections.abc import Sequence
from pathlib import Path

from hmc_fast.bench.jobs.targets import TARGET_HEADER, target_rows
from hmc_fast.bench.peers import family_names
from hmc_fast.bench.record import Record, read_record
from hmc_fast.bench.report.tables import NOT_RUN, ceiling_share, fold_table, reasons
from hmc_fast.errors import UserError
from hmc_fast.files import write_text
from hmc_fast.reporting import between_marks, milliseconds, number

BEGIN = "<!-- performance table: made by `make readme-table`, do not edit -->"
END = "<!-- end of the performance table -->"
CPU_BEGIN = "<!-- CPU table: made by `make readme-table`, do not edit -->"
CPU_END = "<!-- end of the CPU table -->"
MAIN_BEGIN = "<!-- main table: made by `make readme-table`, do not edit -->"
MAIN_END = "<!-- end of the main table -->"
RUNTIMES = family_names("runtime")
"""They keep their memory between calls, so what a call adds does not tell how much they take."""


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
    return "\n".join([*lines, _made_by(record, str(source)), ""])


def main_section(record: Record, source: str) -> str:
    """Markdown: the main job's table, on which films it was made, and why rows lack figures.

    Rows that could not run are left to these reasons: the page is short.

    Raises :class:`UserError` for a record of another job.
    """
    if record.study is None:
        raise UserError(f"{source}: is no record of the main job, hmc-fast bench")
    header, rows = fold_table(record)
    data, options = record.study.data, record.options
    why = [f"{name}: {status}: {reason}." for name, status, reason in reasons(record)]
    lines = [
        f"| {' | '.join(header)} |",
        "|" + "---|" * len(header),
        *(f"| {' | '.join(row)} |" for row in rows if row[-1] not in NOT_RUN),
        "",
        f"{options['model']}, {data['films']} films of {data['patients']} patients, task "
        f"{options['training']['task']}, {options['folds']} {record.study.protocol}-disjoint "
        f"folds, weights `{options['training']['weights']}`. {_made_by(record, source)}",
    ]
    return "\n".join([*lines, *why, ""])


def cpu_section(records: Sequence[Record], sources: Sequence[str]) -> str:
    """Markdown: operators and models, each against the eager reference of its record.

    A table for each processor, with the records it was made from below it.
    """
    processors: dict[str, list[tuple[Record, str]]] = {}
    for record, source in zip(records, sources, strict=True):
        processors.setdefault(_processor(record), []).append((record, source))
    lines = []
    for processor, made in processors.items():
        lines += [f"**{processor}**", "", *_cpu_table([record for record, _ in made]), ""]
        lines += [_made_by(record, source) for record, source in made]
        lines.append("")
    return "\n".join(lines)


def _cpu_table(records: Sequence[Record]) -> list[str]:
    """One row a measurement."""
    lines = [
        "| case | task | peer | precision | p50, ms | against eager | share of the matrix rate "
        "| peak memory, MiB |",
        "|" + "---|" * 8,
    ]
    for record in records:
        timed = [
            row for row in record.measurements if row.p50_ms is not None and row.task != "both"
        ]
        eager = {(r.case, r.task, r.precision): r.p50_ms for r in timed if r.peer == "eager"}
        for row in timed:
            reference_ms = eager.get((row.case, row.task, row.precision))
            cells = [
                row.case,
                row.task,
                row.peer,
                row.precision,
                milliseconds(row.p50_ms),
                number(reference_ms and reference_ms / (row.p50_ms or 1), "{:.2f}×"),
                ceiling_share(row),
                number(None if row.peer in RUNTIMES else row.peak_mib, "{:.0f}"),
            ]
            lines.append(f"| {' | '.join(cells)} |")
    return lines


def _processor(record: Record) -> str:
    """Its name, and its widest vectors where the record tells them."""
    instructions = record.environment.get("cpu_instructions")
    name = str(record.device.get("name"))
    return f"{name}, {instructions}" if instructions else name


def _made_by(record: Record, source: str) -> str:
    packages = record.environment.get("packages", {})
    releases = ", ".join(
        f"{name} {packages[name]}"
        for name in ("torch", "triton", "onnxruntime", "openvino")
        if packages.get(name)
    )
    revision, command = (record.environment.get(name) for name in ("git_revision", "command"))
    threads = record.environment.get("cpu_threads")
    device = f"{_processor(record)}, {threads} threads"
    if record.device.get("kind") == "cuda":
        device = str(record.device.get("name"))
    seconds = record.study and record.study.seconds
    duration = f" in {seconds / 60:.0f} minutes" if seconds else ""
    return (
        f"{device}, {releases}, revision {revision or 'unknown'}. "
        f"Record: [`{Path(source).name}`]({source}), made by `{command}`{duration}."
    )


def update_main(readme: Path, record_path: Path) -> bool:
    """Write the main job's table; returns whether it changed. Raises as :func:`update_cpu`."""
    section = main_section(_whole_record(record_path), _link(readme, record_path))
    return _replace(readme, MAIN_BEGIN, MAIN_END, section)


def update_targets(readme: Path, record_path: Path | None) -> bool:
    """Write the table of the targets; returns whether the file changed. Raises as the other."""
    record = None if record_path is None else _whole_record(record_path)
    source = None if record_path is None else _link(readme, record_path)
    return _replace(readme, BEGIN, END, performance_section(record, source))


def update_cpu(readme: Path, record_paths: Sequence[Path]) -> bool:
    """Write the table of the CPU; returns whether the file changed.

    Raises :class:`UserError` where the file or its marks are missing, or a record is damaged: what
    a README says must come from whole records.
    """
    records = [_whole_record(path) for path in record_paths]
    section = cpu_section(records, [_link(readme, path) for path in record_paths])
    return _replace(readme, CPU_BEGIN, CPU_END, section)


def _link(page: Path, record_path: Path) -> str:
    """The way from the page's folder to the record."""
    return Path(os.path.relpath(record_path.absolute(), page.absolute().parent)).as_posix()


def _whole_record(path: Path) -> Record:
    record = read_record(path)
    if record.problems:
        raise UserError(record.problems[0])
    return record


def _replace(readme: Path, begin: str, end: str, section: str) -> bool:
    try:
        text = readme.read_text(encoding="utf-8")
    except OSError as error:
        raise UserError(f"{readme}: cannot be read ({error.strerror})") from None
    try:
        changed = between_marks(text, begin, end, f"\n{section}")
    except UserError as error:
        raise UserError(f"{readme}: {error}") from None
    if changed == text:
        return False
    write_text(readme, changed)
    return True


def main() -> None:
    """Entry point of ``make readme-table``."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("page", type=Path)
    parser.add_argument(
        "--targets",
        type=Path,
        nargs="*",
        help="record of `bench targets`; without one the table says that nothing is measured",
    )
    parser.add_argument("--main", type=Path, help="record of `bench`, the main job")
    parser.add_argument("--cpu", type=Path, nargs="*", help="records of a CPU", default=[])
    arguments = parser.parse_args()
    try:
        changed = False
        if arguments.targets is not None:
            changed |= update_targets(arguments.page, next(iter(arguments.targets), None))
        if arguments.main:
            changed |= update_main(arguments.page, arguments.main)
        if arguments.cpu:
            changed |= update_cpu(arguments.page, arguments.cpu)
    except UserError as error:
        parser.exit(1, f"{error}\n")
    print(f"{arguments.page}: {'updated' if changed else 'is up to date'}")


if __name__ == "__main__":
    main()
