"""Plots of a benchmark record, as base64 PNG for the HTML report."""

from matplotlib.figure import Figure

from hmc_fast.bench.record import BenchRecord, Row
from hmc_fast.reporting import png_base64

COLOURS = {"eager": "#4c6a92", "compiled": "#c98b3a", "triton": "#5b8c5a"}


def speed_memory_plot(record: BenchRecord) -> str | None:
    """Latency (p50, whisker to p95) and peak memory of every measured row."""
    rows = [row for row in record.rows if row.latency_p50_ms is not None]
    if not rows:
        return None
    figure = Figure(figsize=(10, 0.45 * len(rows) + 1.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    labels = [_label(row) for row in rows]
    p50 = [row.latency_p50_ms or 0 for row in rows]
    whiskers = [(row.latency_p95_ms or 0) - (row.latency_p50_ms or 0) for row in rows]
    colours = [COLOURS[row.implementation] for row in rows]
    left.barh(labels, p50, xerr=[[0] * len(rows), whiskers], color=colours, capsize=3)
    left.set_xlabel("latency of one film, ms (bar p50, whisker p95)")
    # Bars tell by their length, so the axis starts at zero unless that would hide the short ones.
    if max(p50) > 20 * min(p50):
        left.set_xscale("log")
    right.barh(labels, [row.inference_peak_mib or 0 for row in rows], color=colours)
    right.set_xlabel("peak memory while inferring, MiB")
    left.invert_yaxis()
    return png_base64(figure)


def accuracy_plot(record: BenchRecord) -> str | None:
    """Pooled AUC with its interval, and accuracy over folds, of every row that has them."""
    rows = [row for row in record.rows if row.auc is not None]
    if not rows:
        return None
    figure = Figure(figsize=(10, 0.45 * len(rows) + 1.6), layout="constrained")
    left, right = figure.subplots(1, 2, sharey=True)
    labels = [_label(row) for row in rows]
    for label, row in zip(labels, rows, strict=True):
        colour = COLOURS[row.implementation]
        auc, low, high = row.auc or 0, row.auc_low or 0, row.auc_high or 0
        left.errorbar(
            [auc], [label], xerr=[[auc - low], [high - auc]], fmt="o", color=colour, capsize=4
        )
        right.errorbar(
            [row.accuracy_mean], [label], xerr=[row.accuracy_std], fmt="s", color=colour, capsize=4
        )
    left.axvline(0.5, color="#999999", linestyle=":", linewidth=1)
    left.set_xlim(0, 1)
    left.set_xlabel("pooled AUC, patient-cluster bootstrap 95 % interval")
    right.set_xlim(0, 1)
    right.set_xlabel("accuracy, mean ± std over folds")
    left.invert_yaxis()
    return png_base64(figure)


def _label(row: Row) -> str:
    return f"{row.size}² {row.implementation} {row.precision}"
