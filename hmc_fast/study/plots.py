"""Figures of a study report, each as PNG bytes."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from hmc_fast.evaluation.comparison import FriedmanTest
from hmc_fast.evaluation.roc import roc_band
from hmc_fast.reporting import BLUE, FIGURE_WIDTH, GREEN, GREY, ORANGE, PURPLE, new_figure, png
from hmc_fast.study.compare import ModelResult

COLUMNS = 3


def learning_curves(results: Sequence[ModelResult]) -> bytes:
    """Loss on training and held-out films and the held-out AUC, a line a fold and their mean."""

    def draw(axes: Axes, result: ModelResult) -> None:
        right = axes.twinx()
        curves = (
            (axes, "train_loss", BLUE, "loss, training films"),
            (axes, "val_loss", ORANGE, "loss, held-out films"),
            (right, "val_auc", GREEN, "AUC, held-out films"),
        )
        for side, name, colour, label in curves:
            _draw_curves(side, result, name, colour, label)
        axes.set_xlabel("epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.set_ylim(0, 1.08 * axes.dataLim.y1 if axes.lines else 1)
        axes.set_ylabel("loss, cross-entropy")
        right.set_ylim(0, 1)
        right.set_ylabel("AUC")

    return _grid(results, draw, columns=2, legend=True)


def _draw_curves(axes: Axes, result: ModelResult, name: str, colour: str, label: str) -> None:
    """A line a fold and their mean; nothing where the history lacks ``name``."""
    curves = [[row[name] for row in history if name in row] for history in result.histories]
    curves = [curve for curve in curves if curve]
    for curve in curves:
        axes.plot(range(1, len(curve) + 1), curve, color=colour, alpha=0.3, linewidth=0.8)
    if curves:
        mean = np.mean(curves, axis=0)
        epochs = range(1, len(mean) + 1)
        axes.plot(epochs, mean, color=colour, marker="o", markersize=3, label=label)


def deletion_insertion_curves(results: Sequence[ModelResult]) -> bytes:
    """Mean probability of the class while salient pixels go (solid) and come back (dashed)."""

    def draw(axes: Axes, result: ModelResult) -> None:
        assert result.localisation is not None
        shares = result.localisation["settings"]["shares"]
        methods = result.localisation["methods"].items()
        for colour, (method, values) in zip((BLUE, ORANGE, GREEN, PURPLE), methods, strict=False):
            axes.plot(shares, values["deletion_curve"], color=colour, label=method)
            axes.plot(shares, values["insertion_curve"], color=colour, linestyle="--")
        axes.set_xlabel("share of pixels")
        axes.set_ylabel("probability of the class")
        axes.set_ylim(0, 1)

    measured = [result for result in results if result.localisation is not None]
    return _grid(measured, draw, legend=True)


def roc_curves(results: Sequence[ModelResult]) -> bytes:
    """Pooled ROC of the first repeat with its pointwise 95 % band."""

    def draw(axes: Axes, result: ModelResult) -> None:
        band = roc_band(result.repeats[0])
        axes.plot([0, 1], [0, 1], color=GREY, linestyle=":", linewidth=1)
        if band is not None:
            x = band.false_positive_rate
            axes.fill_between(x, band.low, band.high, color=BLUE, alpha=0.25, linewidth=0)
            axes.plot(x, band.sensitivity, color=BLUE)
        axes.set_title(f"{result.label}\nAUC {result.pooled_auc}", fontsize=8, wrap=True)
        axes.set_xlabel("1 - specificity")
        axes.set_ylabel("sensitivity")
        axes.set_xticks([0, 0.5, 1], ["0", "0.5", "1"])
        axes.set_yticks([0, 0.5, 1], ["0", "0.5", "1"])
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
        axes.set_yticks(range(len(names)), names, rotation=90, va="center")
        axes.set_xlabel("predicted")
        axes.set_ylabel("true")

    def add_colour_bar(figure: Figure, grid: Any) -> None:
        scale = ScalarMappable(Normalize(0, 1), "Blues")
        figure.colorbar(scale, ax=grid, label="share of the true class (row)", shrink=0.8)

    return _grid(results, draw, finish=add_colour_bar)


def critical_difference_diagram(labels: Sequence[str], test: FriedmanTest) -> bytes:
    """Demšar's diagram: mean ranks, best at the left; bars join what cannot be told apart.

    The better half is named at the left margin, the other at the right, so that no name lies on a
    line or a marker.
    """
    order = np.argsort(test.mean_ranks, kind="stable")
    ranks = [test.mean_ranks[i] for i in order]
    bars = _indistinguishable(ranks, test.critical_difference)
    depth, half = len(bars) + 1, math.ceil(len(ranks) / 2)
    height = 1.6 + 0.3 * half + 0.15 * len(bars)
    figure = new_figure(height)
    axes = figure.subplots()
    right = max(len(ranks), 1 + test.critical_difference) + 0.2
    for place, (index, rank) in enumerate(zip(order, ranks, strict=True)):
        on_left = place < half
        margin = 0.8 if on_left else right
        level = -depth - (place if on_left else len(ranks) - 1 - place)
        axes.plot([rank, rank, margin], [0, level, level], color=GREY, linewidth=0.8)
        axes.plot([rank], [0], marker="o", color=BLUE, markersize=5)
        text = f"{labels[index]} ({rank:.2f})"
        place_text = {"ha": "right", "x": margin - 0.05} if on_left else {"x": margin + 0.05}
        axes.text(y=level, s=text, va="center", fontsize=8, clip_on=False, **place_text)
    for level, (low, high) in enumerate(bars):
        axes.plot([low - 0.03, high + 0.03], [-0.7 - level] * 2, color="black", linewidth=3)
    axes.plot([1, 1 + test.critical_difference], [1.2, 1.2], color=ORANGE, linewidth=3)
    axes.text(1, 1.6, f"critical difference {test.critical_difference:.2f}", fontsize=8)
    axes.set_xlim(0.8, right)
    axes.set_ylim(-depth - half, 2.8)
    axes.set_xticks(range(1, len(ranks) + 1))
    axes.set_xlabel("mean rank (1 is best)")
    axes.set_yticks([])
    axes.spines[["left", "right", "top"]].set_visible(False)
    return png(figure)


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


def _grid(
    results: Sequence[ModelResult],
    draw: Callable[[Axes, ModelResult], object],
    columns: int = COLUMNS,
    legend: bool = False,
    finish: Callable[[Figure, Any], object] | None = None,
) -> bytes:
    """One panel a model; ``legend`` once for all of them, ``finish`` gets figure and panels."""
    columns = min(columns, len(results))
    rows = math.ceil(len(results) / columns)
    width = FIGURE_WIDTH / columns if columns > 1 else 0.6 * FIGURE_WIDTH
    figure = new_figure(2.6 * rows + 0.3 * legend, width * columns)
    grid: Any = figure.subplots(rows, columns, squeeze=False)
    for axes, result in zip(grid.flat, results, strict=False):
        axes.set_title(result.label, fontsize=9, wrap=True)
        draw(axes, result)
    for axes in grid.flat[len(results) :]:
        axes.set_axis_off()
    if legend:
        handles = {
            label: handle
            for axes in figure.axes
            for handle, label in zip(*axes.get_legend_handles_labels(), strict=True)
        }
        figure.legend(
            handles.values(),
            handles,
            loc="outside lower center",
            ncols=3,
            frameon=False,
            fontsize=9,
        )
    if finish is not None:
        finish(figure, grid)
    return png(figure)
