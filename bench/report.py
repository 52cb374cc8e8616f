"""Reports of a benchmark record: Markdown to read anywhere, HTML with plots."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hmc_fast.bench.plots import accuracy_plot, speed_memory_plot
from hmc_fast.bench.record import BenchRecord, Row
from hmc_fast.evaluation import METRIC_NAMES, mean_and_std
from hmc_fast.files import write_text
from hmc_fast.reporting import (
    PHANTOM_NOTICE,
    RESEARCH_NOTICE,
    number,
    plus_minus,
    templates,
    with_interval,
)

_COLUMNS: tuple[tuple[str, Callable[[Row], str]], ...] = (
    ("size", lambda r: f"{r.size}²"),
    ("implementation", lambda r: r.implementation),
    ("precision", lambda r: r.precision),
    ("latency p50 / p95, ms", lambda r: _pair(r.latency_p50_ms, r.latency_p95_ms, "{:.1f}")),
    ("films/s", lambda r: number(r.throughput_films_per_s, "{:.1f}")),
    ("peak memory, MiB", lambda r: number(r.inference_peak_mib, "{:.0f}")),
    ("accuracy across folds", lambda r: plus_minus(r.accuracy_mean, r.accuracy_std)),
    ("pooled AUC [95 % CI]", lambda r: with_interval(r.auc, r.auc_low, r.auc_high)),
    ("largest Δlogit", lambda r: number(r.max_logit_difference, "{:.1e}")),
    ("flips", lambda r: number(r.flipped_decisions, "{}")),
    ("ΔAUC", lambda r: number(r.auc_difference, "{:+.4f}")),
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
    environment = templates("hmc_fast.bench")
    write_text(markdown, environment.get_template("report.md.j2").render(context))
    plots = {"speed_plot": speed_memory_plot(record), "accuracy_plot": accuracy_plot(record)}
    write_text(html, environment.get_template("report.html.j2").render({**context, **plots}))
    return markdown, html


def _context(record: BenchRecord) -> dict[str, Any]:
    header, cells = table(record)
    return {
        "record": record,
        "header": header,
        "cells": cells,
        "metrics": [
            (name, plus_minus(*value) if value else "undefined in a fold")
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


def _pair(first: float | None, second: float | None, form: str) -> str:
    return "–" if first is None else f"{number(first, form)} / {number(second, form)}"


def _parity(row: Row) -> str:
    if row.status != "ok":
        return row.status
    return f"ok ({row.parity_max_error:.1e} of {row.parity_allowed:.1e})"
