"""Reports of a record of any job: Markdown to read anywhere, HTML with plots, one page layout."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hmc_fast.bench.jobs.targets import TARGET_HEADER, target_rows
from hmc_fast.bench.peers import family_names
from hmc_fast.bench.record import Record
from hmc_fast.bench.report import plots, tables
from hmc_fast.bench.report.tables import Cells
from hmc_fast.files import write_text
from hmc_fast.reporting import PHANTOM_NOTICE, RESEARCH_NOTICE, markdown_templates, templates

Records = Sequence[tuple[str, Record]]
"""Named records, oldest first."""


@dataclass(frozen=True)
class Section:
    """A part of a page; ``image`` is a base64 PNG, which Markdown leaves out."""

    title: str
    lines: list[str] = field(default_factory=list)
    cells: Cells | None = None
    notes: list[tuple[str, str]] = field(default_factory=list)
    image: str | None = None


def write_reports(records: Records, folder: Path) -> tuple[Path, Path]:
    """Write ``report.md`` and ``report.html``; returns their paths.

    Records that measured the same on the same device are steps of one part of the page: the last
    one's tables, and what every step brought. Any other record has a part of its own.
    """
    markdown, html = folder / "report.md", folder / "report.html"
    package = "hmc_fast.bench.report"
    parts = [_part(steps) for steps in series_of(records)]
    names = ", ".join(name for name, _ in records)
    context = {
        "title": _title(records[-1][1]) if len(parts) == 1 else f"Benchmark records: {names}",
        "parts": parts,
        "research_notice": RESEARCH_NOTICE,
        "ours": family_names("ours"),
    }
    write_text(markdown, markdown_templates(package).get_template("page.md.j2").render(context))
    write_text(html, templates(package).get_template("page.html.j2").render(context))
    return markdown, html


def series_of(records: Records) -> list[Records]:
    """``records`` in groups, each with its order kept, whose last one has every row of the rest."""
    groups: list[list[tuple[str, Record]]] = []
    for named in records:
        group = next((g for g in groups if _continues(g[-1][1], named[1])), None)
        if group is None:
            groups.append([named])
        else:
            group.append(named)
    return list(groups)


def _continues(older: Record, newer: Record) -> bool:
    if older.study or newer.study or older.device.get("name") != newer.device.get("name"):
        return False
    return {row.key for row in older.measurements} <= {row.key for row in newer.measurements}


def _part(records: Records) -> dict[str, Any]:
    """What the templates write of one record and the steps before it."""
    name, record = records[-1]
    history = []
    if len(records) > 1:
        history = [Section("Medians step by step, ms", cells=tables.history_table(records))]
    return {
        "title": f"{name}: {_title(record)}",
        "facts": _facts(record),
        "notice": PHANTOM_NOTICE if record.study and record.study.data["phantoms"] else None,
        "command": record.environment.get("command", "unknown"),
        "plots": _plot_sections(records),
        "sections": [*result_sections(record), *history, *_closing_sections(record)],
    }


def result_sections(record: Record) -> list[Section]:
    """The tables of figures and the reasons for those that are missing."""
    sections = []
    if record.study is not None:
        sections.append(Section("All peers", _study_lines(record), tables.fold_table(record)))
    else:
        sections += [
            Section(table.title, table.floors, table.cells) for table in tables.case_tables(record)
        ]
        models = tables.model_table(record)
        if models[1]:
            sections.append(Section("Whole models", tables.amdahl_lines(record), models))
    notes = [(name, f"{status}: {reason}") for name, status, reason in tables.reasons(record)]
    if notes:
        sections.append(Section("Rows without figures, and why", notes=notes))
    return sections


def _title(record: Record) -> str:
    if record.study is None:
        return "Speed of the kernels and models"
    return f"{record.options.get('model')}: speed, memory and accuracy across folds"


def _facts(record: Record) -> list[str]:
    environment, device = record.environment, record.device
    packages = environment.get("packages", {})
    threads = f"{environment.get('cpu_threads')} threads"
    before, after = (device.get(f"clocks_{when}") or {} for when in ("before", "after"))
    facts = [
        f"{device.get('name')}, {device.get('architecture') or threads}; torch "
        f"{packages.get('torch')}, triton {packages.get('triton')}, Python "
        f"{environment.get('python')}; {record.created}, revision "
        f"{environment.get('git_revision') or 'unknown'}",
        f"Clocks seen: {_clock_text(before, after)}",
    ]
    if attention := environment.get("cpu_attention"):
        facts.append(f"Our attention on this CPU: {attention}")
    if record.study is not None:
        data, options = record.study.data, record.options
        facts.append(
            f"{data['name']}: {data['films']} films of {data['patients']} patients; task "
            f"{options['training']['task']}; {record.study.protocol}-disjoint folds "
            f"({options['folds']}), {_fitting(record)}, nothing selected on a fold"
        )
    return facts


def _fitting(record: Record) -> str:
    model = record.options["model"]
    if tables.training_of(record).epochs_of(model):
        return "last epoch kept"
    return "lesion head fitted to the circles without an epoch"


def _clock_text(before: dict[str, Any], after: dict[str, Any]) -> str:
    parts = [
        f"{name.removesuffix('_mhz').replace('_', ' ')} {before[name]:.4g}"
        + (f" before, {after[name]:.4g} after" if name in after else "")
        + (" (MHz)" if name.endswith("_mhz") else "")
        for name in before
    ]
    return "; ".join(parts) or "not readable"


def _study_lines(record: Record) -> list[str]:
    assert record.study is not None
    lines = [
        f"Latency is of one film; films/s at {record.options.get('throughput_batch')} films a call."
        " Differences (Δlogit, flips, ΔAUC) are from eager fp32 on the held-out films of all folds."
    ]
    return lines + [
        "The attention operators' share of the operations (without their projections) at "
        f"{tables.image_size(record, int(size))}: {share * 100:.1f} %."
        for size, share in record.study.attention_share.items()
    ]


def _closing_sections(record: Record) -> list[Section]:
    sections = []
    if record.study is not None:
        title = "Metrics of eager fp32, fold by fold"
        sections.append(Section(title, cells=tables.fold_metric_table(record)))
    elif record.device.get("kind") == "cuda":
        targets = (TARGET_HEADER, target_rows(record))
        sections.append(Section("Targets", cells=targets))
    if record.device.get("kind") == "cuda":
        clocks = tables.clock_table(record)
        if clocks[1]:
            sections.append(Section("Clocks while timing", cells=clocks))
    if record.ceilings:
        title = "Ceilings measured in this run"
        sections.append(Section(title, cells=tables.ceiling_table(record)))
    if record.resources:
        line = (
            "Cross-compiled; spilled registers and shared memory decide how many programs fit on a "
            "multiprocessor."
        )
        cells = tables.resource_table(record)
        sections.append(Section("What the fused kernels take", [line], cells))
    if record.problems:
        notes = [("problem", problem) for problem in record.problems]
        sections.append(Section("Lines of the record that could not be read", notes=notes))
    return [*sections, _method(record)]


def _method(record: Record) -> Section:
    clock = "Times are wall clock"
    if record.device.get("kind") == "cuda":
        clock = (
            "Times are between device events, with the last-level cache overwritten and a head "
            "start for the host before each sample"
        )
    lines = [
        f"{clock}, inputs rotating, all peers sampled in turn; no sample is left out, and outliers "
        "lie beyond the median by more than five times the p20–p80 spread. The host's time is that "
        "of launching on a GPU, and of the whole call on a CPU. A time is given only where results "
        "are within the error budget against fp64 (1 is the limit).",
        "Under load: other processes took more than 10 % of all cores, or the hypervisor more than "
        "2 %, while the row was timed. On a CPU such a timing is repeated whole, up to three times "
        "in all, and the quietest is shown.",
        "The share of the ceiling is the floor over the median, and the floor the larger of "
        "operations over the measured matrix-product rate and bytes over the measured copy "
        "bandwidth. What a peer needs beforehand (padding, concatenation) is not timed, in its "
        "favour. Peak memory is what a call adds to its inputs; for models it is all they hold, in "
        "the main job all that a process of its own holds.",
    ]
    if record.study is not None:
        lines[2:] = ["Peak memory is all that a process of its own holds."]
    return Section("How this was measured", lines, notes=tables.variants(record))


def _plot_sections(records: Records) -> list[Section]:
    record = records[-1][1]
    if record.study is not None:
        drawn = [
            ("Latency and memory", plots.latency_and_memory(record)),
            ("Accuracy across folds", plots.accuracy_across_folds(record)),
        ]
    else:
        drawn = [
            ("Roofline", plots.roofline(record)),
            ("Speed over the eager reference", plots.speed_up_bars(record)),
            ("What every step brought", plots.waterfall(records)),
            ("Memory by resolution", plots.memory_by_resolution(record)),
            ("Latency by batch", plots.latency_by_batch(record)),
        ]
    return [Section(title, image=image) for title, image in drawn if image is not None]
