"""Figures of a study report, each as PNG bytes."""

import io
import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hmc_fast.evaluation.comparison import FriedmanTest
from hmc_fast.evaluation.roc import roc_band
from hmc_fast.study.compare import ModelResult

BLUE, ORANGE, GREEN, GREY = "#4c6a92", "#c98b3a", "#5b8c5a", "#999999"
COLUMNS = 4


def learning_curves(results: Sequence[ModelResult]) -> bytes:
    """Loss on training and held-out films and the held-out AUC, a line a fold and their mean."""

    def draw(axes: Axes, result: ModelResult) -> None:
        for name, colour in (("train_loss", BLUE), ("val_loss", ORANGE), ("val_auc", GREY)):
            curves = [[row[name] for row in h if name in row] for h in result.histories]
            curves = [curve for curve in curves if curve]
            for curve in curves:
                axes.plot(range(1, len(curve) + 1), curve, color=colour, alpha=0.3, linewidth=0.8)
            if curves:
                mean = np.mean(curves, axis=0)
                axes.plot(
                    range(1, len(mean) + 1),
                    mean,
                    color=colour,
                    marker="o",
                    markersize=3,
                    label=name,
                )
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylim(bottom=0)
        axes.legend(fontsize="x-small", frameon=False)

    return _grid(results, draw)


def deletion_insertion_curves(results: Sequence[ModelResult]) -> bytes:
    """Mean probability of the class while salient pixels go (solid) and come back (dashed)."""

    def draw(axes: Axes, result: ModelResult) -> None:
        assert result.localisation is not None
        shares = result.localisation["settings"]["shares"]
        methods = result.localisation["methods"].items()
        for colour, (method, values) in zip((BLUE, ORANGE, GREEN, GREY), methods, strict=False):
            axes.plot(shares, values["deletion_curve"], color=colour, label=method)
            axes.plot(shares, values["insertion_curve"], color=colour, linestyle="--")
        axes.set_xlabel("share of pixels")
        axes.set_ylabel("probability")
        axes.set_ylim(0, 1)
        axes.legend(fontsize="x-small", frameon=False)

    return _grid([result for result in results if result.localisation is not None], draw)


def roc_curves(results: Sequence[ModelResult]) -> bytes:
    """Pooled ROC of the first repeat with its pointwise 95 % band."""

    def draw(axes: Axes, result: ModelResult) -> None:
        band = roc_band(result.repeats[0])
        axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1)
        if band is not None:
            x = band.false_positive_rate
            axes.fill_between(x, band.low, band.high, color=BLUE, alpha=0.25, linewidth=0)
            axes.plot(x, band.sensitivity, color=BLUE)
        axes.set_xlabel("1 - specificity")
        axes.set_ylabel("sensitivity")
        axes.set_aspect("equal")

    return _grid(results, draw)


def confusion_matrices(results: Sequence[ModelResult]) -> bytes:
    """Counts of true against predicted class, shaded by the share of the true class."""

    def draw(axes: Axes, result: ModelResult) -> None:
        counts = np.array(result.confusion)
        shares = counts / np.maximum(1, counts.sum(1, keepdims=True))
        axes.imshow(shares, cmap="Blues", vmin=0, vmax=1)
        for (row, column), count in np.ndenumerate(counts):
            colour = "white" if shares[row, column] > 0.6 else "black"
            axes.text(column, row, str(count), ha="center", va="center", color=colour)
        names = result.repeats[0].class_names
        axes.set_xticks(range(len(names)), names)
        axes.set_yticks(range(len(names)), names)
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")

    return _grid(results, draw)


def critical_difference_diagram(labels: Sequence[str], test: FriedmanTest) -> bytes:
    """Demšar's diagram: mean ranks, best at the left; bars join what cannot be told apart."""
    order = np.argsort(test.mean_ranks, kind="stable")
    ranks = [test.mean_ranks[i] for i in order]
    bars = _indistinguishable(ranks, test.critical_difference)
    figure = Figure(figsize=(8, 1.4 + 0.3 * len(ranks) + 0.15 * len(bars)), layout="constrained")
    axes = figure.subplots()
    depth = len(bars) + 1
    for place, (index, rank) in enumerate(zip(order, ranks, strict=True)):
        height = -depth - place
        axes.plot([rank, rank], [0, height], color=GREY, linewidth=0.8)
        axes.plot([rank], [0], marker="o", color=BLUE, markersize=4)
        axes.text(
            rank + 0.04,
            height,
            f"{labels[index]} ({rank:.2f})",
            va="center",
            fontsize="small",
            bbox={"facecolor": "white", "edgecolor": "none", "pad": 1},
        )
    for level, (low, high) in enumerate(bars):
        axes.plot([low - 0.03, high + 0.03], [-0.7 - level] * 2, color="black", linewidth=3)
    axes.plot([1, 1 + test.critical_difference], [1.2, 1.2], color=ORANGE, linewidth=3)
    axes.text(1, 1.5, f"critical difference {test.critical_difference:.2f}", fontsize="small")
    axes.set_xlim(0.9, max(len(ranks), 1 + test.critical_difference) + 1)
    axes.set_ylim(-depth - len(ranks), 2.6)
    axes.set_xticks(range(1, len(ranks) + 1))
    axes.set_xlabel("mean rank (1 is best)")
    axes.set_yticks([])
    axes.spines[["left", "right", "top"]].set_visible(False)
    return _png(figure)


def _indistinguishable(ranks: Sequence[float], difference: float) -> list[tuple[float, float]]:
    """Longest runs of sorted ranks within the critical difference, two or more each."""
    bars: list[tuple[float, float]] = []
    reached = -1
    for start, low in enumerate(ranks):
        end = max(i for i, rank in enumerate(ranks) if rank - low <= difference)
        if end > start and end > reached:
            bars.append((low, ranks[end]))
            reached = end
    return bars


def _grid(results: Sequence[ModelResult], draw: Callable[[Axes, ModelResult], object]) -> bytes:
    columns = min(COLUMNS, len(results))
    rows = math.ceil(len(results) / columns)
    figure = Figure(figsize=(3.2 * columns, 3.1 * rows), layout="constrained")
    grid: Any = figure.subplots(rows, columns, squeeze=False)
    for axes, result in zip(grid.flat, results, strict=False):
        draw(axes, result)
        axes.set_title(result.label, fontsize="small", wrap=True)
    for axes in grid.flat[len(results) :]:
        axes.set_axis_off()
    return _png(figure)


def _png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=110)
    return buffer.getvalue()
