"""The one page of a check: what was proven, what failed and why, what was not reached."""

from dataclasses import dataclass
from pathlib import Path

from hmc_fast.bench.gpu.runner import LOGS, CheckRecord, StepResult
from hmc_fast.bench.gpu.steps import ALONE, TARGETS
from hmc_fast.bench.jobs.targets import OURS, TARGET_HEADER, target_rows
from hmc_fast.bench.record import RECORD_FILE, Record, merged, read_record, write_record
from hmc_fast.bench.report.pages import write_reports
from hmc_fast.bench.report.tables import Cells, ceiling_table, clock_table
from hmc_fast.errors import UserError
from hmc_fast.files import make_folder, write_text
from hmc_fast.reporting import DASH, RESEARCH_NOTICE, markdown_templates, templates

PACKAGE = "hmc_fast.bench.gpu"


@dataclass(frozen=True)
class _Section:
    title: str
    line: str
    cells: Cells | None = None


def conclusion(record: CheckRecord) -> str:
    """The check in one sentence."""
    counts = {
        "proven": len(record.having("passed")),
        "failed": len(record.having("failed")),
        "cannot run here": len(record.having("unavailable")),
        "not reached": len(record.not_reached),
    }
    said = ", ".join(f"{count} {what}" for what, count in counts.items() if count)
    return f"Of {len(record.names)} steps: {said}."


def write_page(record: CheckRecord, folder: Path) -> tuple[Path, Path]:
    """Write ``report.md`` and ``report.html``, beside them what was timed; returns their paths.

    The timed cases are joined in ``speed/record.jsonl`` with reports of their own.
    """
    markdown, html = folder / "report.md", folder / "report.html"
    timed = _timed(folder)
    context = {
        "title": "What this GPU proves",
        "conclusion": conclusion(record),
        "facts": [f"{name}: {value or 'unknown'}" for name, value in record.made_on.items()],
        "command": record.environment.get("command", "unknown"),
        "sections": [*_verdicts(record), *_figures(timed)],
        "notice": RESEARCH_NOTICE,
    }
    write_text(markdown, markdown_templates(PACKAGE).get_template("check.md.j2").render(context))
    write_text(html, templates(PACKAGE).get_template("check.html.j2").render(context))
    if timed is not None:
        speed = make_folder(folder / "speed")
        write_record(speed / RECORD_FILE, timed)
        write_reports([("gpu-check", timed)], speed)
    return markdown, html


def _timed(folder: Path) -> Record | None:
    found: dict[str, Record] = {}
    for path in (folder / TARGETS).glob(f"*/{RECORD_FILE}"):
        try:
            found[path.parent.name] = read_record(path)
        except UserError:  # its step says that it failed
            continue
    # Times beside peers are the ones to compare; without them, those taken alone are better than
    # none.
    beside = {name for name, record in found.items() if _times_ours(record)}
    records = [
        record for name, record in found.items() if name.removesuffix(ALONE) not in beside - {name}
    ]
    records.sort(key=lambda record: record.created)
    return merged(records, TARGETS) if records else None


def _times_ours(record: Record) -> bool:
    return any(row.peer in OURS and row.p50_ms for row in record.measurements)


def _verdicts(record: CheckRecord) -> list[_Section]:
    sections = []
    failed = record.having("failed")
    if failed:
        rows = [[*_of(r), r.reason or DASH, f"{LOGS}/"] for r in failed]
        header = ["part", "step", "reason", "log"]
        sections.append(_Section("Failed", "Each has its log.", (header, rows)))
    passed = record.having("passed")
    if passed:
        rows = [[*_of(r), r.shows, f"{r.seconds:.0f} s"] for r in passed]
        sections.append(_Section("Proven", "", (["part", "step", "what it shows", "took"], rows)))
    left = dict.fromkeys(record.not_reached, "not begun: the time was over")
    left |= {r.name: r.reason or DASH for r in record.having("cut")}
    if left:
        line = "The same command with the same folder goes on here."
        rows = [[name, reason] for name, reason in left.items()]
        sections.append(_Section("Not reached", line, (["step", "why"], rows)))
    missing = record.having("unavailable")
    if missing:
        rows = [[*_of(r), r.reason or DASH] for r in missing]
        sections.append(_Section("Cannot run on this machine", "", (["part", "step", "why"], rows)))
    return sections


def _of(result: StepResult) -> list[str]:
    return [result.part, result.name]


def _figures(timed: Record | None) -> list[_Section]:
    if timed is None:
        line = "Nothing was timed, so no target is met or missed."
        return [_Section("Speed targets", line)]
    states = target_rows(timed)
    line = "All rows, peers and reasons are in speed/report.html."
    if any(row[-1] == "not met" for row in states):
        line += " Why one was missed: the Nsight Compute reports ncu-*.ncu-rep, where ncu ran."
    return [
        _Section("Speed targets", line, (TARGET_HEADER, states)),
        _Section("Ceilings", "Before and after each case.", ceiling_table(timed)),
        _Section(
            "Clocks while timing",
            "Read from NVML during the samples. A slowed share above 0 % says that the GPU held "
            "itself back for the reason named.",
            clock_table(timed),
        ),
    ]
