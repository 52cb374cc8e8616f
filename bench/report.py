"""Reports of a benchmark record: Markdown to read anywhere, HTML with plots."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape

from hmc_fast.bench.plots import accuracy_plot, speed_memory_plot
from hmc_fast.bench.record import BenchRecord, Row
from hmc_fast.evaluation import METRIC_NAMES, mean_and_std
from hmc_fast.files import write_text

PHANTOM_NOTICE = (
    "These films are procedural phantoms: the figures show that the software runs and how fast, "
    "and say nothing about mammograms."
)
RESEARCH_NOTICE = "Research software, not a medical device."

_COLUMNS: tuple[tuple[str, Callable[[Row], str]], ...] = (
    ("size", lambda r: f"{r.size}²"),
    ("implementation", lambda r: r.implementation),
    ("precision", lambda r: r.precision),
    ("latency p50 / p95, ms", lambda r: _pair(r.latency_p50_ms, r.latency_p95_ms, "{:.1f}")),
    ("films/s", lambda r: _one(r.throughput_films_per_s, "{:.1f}")),
    ("peak memory, MiB", lambda r: _one(r.inference_peak_mib, "{:.0f}")),
    ("accuracy across folds", lambda r: _plus_minus(r.accuracy_mean, r.accuracy_std)),
    ("pooled AUC [95 % CI]", lambda r: _interval(r.auc, r.auc_low, r.auc_high)),
    ("largest Δlogit", lambda r: _one(r.max_logit_difference, "{:.1e}")),
    ("flips", lambda r: _one(r.flipped_decisions, "{}")),
    ("ΔAUC", lambda r: _one(r.auc_difference, "{:+.4f}")),
    ("parity", lambda r: _parity(r)),
)


def table(record: BenchRecord) -> tuple[list[str], list[list[str]]]:
    """Header and cells of the one table, as text."""
    return (
        [name for name, _ in _COLUMNS],
        [[cell(row) for _, cell in _COLUMNS] for row in record.rows],
    )


def write_reports(record: BenchRecord, folder: Path) -> tuple[Path, Path]:
    """Write ``report.md`` and ``report.html`` into ``folder``; returns their paths."""
    markdown, html = folder / "report.md", folder / "report.html"
    context = _context(record)
    environment = template_environment()
    write_text(markdown, environment.get_template("report.md.j2").render(context))
    plots = {"speed_plot": speed_memory_plot(record), "accuracy_plot": accuracy_plot(record)}
    write_text(html, environment.get_template("report.html.j2").render({**context, **plots}))
    return markdown, html


def template_environment() -> Environment:
    """Jinja2 over this package's templates; HTML is escaped."""
    return Environment(
        loader=PackageLoader("hmc_fast.bench"),
        autoescape=select_autoescape(["html.j2"]),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


def _context(record: BenchRecord) -> dict[str, Any]:
    header, cells = table(record)
    return {
        "record": record,
        "header": header,
        "cells": cells,
        "metrics": [
            (name, _plus_minus(*value) if value else "undefined in a fold")
            for name, value in mean_and_std(record.fold_metrics).items()
        ],
        "metric_names": METRIC_NAMES,
        "reasons": [
            (f"{row.size}² {row.implementation} {row.precision}", row.status, row.reason)
            for row in record.rows
            if row.reason
        ],
        "phantom_notice": PHANTOM_NOTICE if record.data["phantoms"] else None,
        "research_notice": RESEARCH_NOTICE,
    }


def _one(value: float | None, form: str) -> str:
    return "–" if value is None else form.format(value)


def _pair(first: float | None, second: float | None, form: str) -> str:
    return "–" if first is None else f"{_one(first, form)} / {_one(second, form)}"


def _plus_minus(mean: float | None, std: float | None) -> str:
    return "–" if mean is None else f"{mean:.3f} ± {std:.3f}"


def _interval(value: float | None, low: float | None, high: float | None) -> str:
    return "–" if value is None else f"{value:.3f} [{low:.3f}, {high:.3f}]"


def _parity(row: Row) -> str:
    if row.status != "ok":
        return row.status
    return f"ok ({row.parity_max_error:.1e} of {row.parity_allowed:.1e})"
