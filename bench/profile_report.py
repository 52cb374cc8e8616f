"""Reports of profiling records: Markdown to read anywhere, HTML with plots."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hmc_fast.bench import profile_plots, profile_tables
from hmc_fast.bench.profile_record import ProfileRecord
from hmc_fast.bench.targets import TARGET_HEADER, target_rows
from hmc_fast.files import write_text
from hmc_fast.reporting import templates


def write_profile_reports(
    records: Sequence[tuple[str, ProfileRecord]], folder: Path
) -> tuple[Path, Path]:
    """Write ``report.md`` and ``report.html`` of the last record; returns their paths.

    ``records`` are named, oldest first; earlier ones appear in the waterfall of optimisations.
    """
    markdown, html = folder / "report.md", folder / "report.html"
    record = records[-1][1]
    environment = templates("hmc_fast.bench")
    context = _context(record)
    write_text(markdown, environment.get_template("profile.md.j2").render(context))
    plots = [
        ("Roofline", profile_plots.roofline(record)),
        ("Speed over the eager reference", profile_plots.speed_up_bars(record)),
        ("Waterfall of optimisations", profile_plots.waterfall(records)),
        ("Memory by resolution", profile_plots.memory_by_resolution(record)),
        ("Latency by batch", profile_plots.latency_by_batch(record)),
    ]
    drawn = [(title, image) for title, image in plots if image is not None]
    write_text(
        html, environment.get_template("profile.html.j2").render({**context, "plots": drawn})
    )
    return markdown, html


def _context(record: ProfileRecord) -> dict[str, Any]:
    before, after = (record.device.get(f"clocks_{when}") or {} for when in ("before", "after"))
    return {
        "record": record,
        "packages": record.environment.get("packages", {}),
        "clocks": _clock_text(before, after),
        "ceilings": profile_tables.ceiling_table(record),
        "case_tables": profile_tables.case_tables(record),
        "models": profile_tables.model_table(record),
        "amdahl": profile_tables.amdahl_lines(record),
        "resources": profile_tables.resource_table(record),
        "targets": (TARGET_HEADER, target_rows(record)),
        "reasons": profile_tables.reasons(record),
        "hows": profile_tables.hows(record),
        "on_gpu": record.device.get("kind") == "cuda",
    }


def _clock_text(before: dict[str, Any], after: dict[str, Any]) -> str:
    parts = [
        f"{name.replace('_', ' ')} {before[name]:g}"
        + (f" before, {after[name]:g} after" if name in after else "")
        for name in before
    ]
    return "; ".join(parts) or "not readable"
