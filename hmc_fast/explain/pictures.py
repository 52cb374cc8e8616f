"""Pictures: film, heat map and overlay side by side, and a contact sheet of many films."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib import style
from matplotlib.cm import ScalarMappable
from matplotlib.colors import Normalize, TwoSlopeNorm
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from numpy.typing import NDArray

from hmc_fast.explain.film import FilmExplanation
from hmc_fast.explain.methods import LESIONS, SCALE, TITLES, ActivationMap
from hmc_fast.explain.scale import SCALES, ScaleMap
from hmc_fast.files import spelled, write_atomically
from hmc_fast.reporting import percent

HEAT_COLOURS = "inferno"
SCALE_COLOURS = "coolwarm"
LESION_COLOUR = "#35e0d0"
OVERLAY_STRENGTH = 0.55
"""Opacity where the evidence is strongest; it falls with the evidence."""
UNDECIDED = 0.5
"""Of the lesion map; below it nothing speaks for a lesion."""
SMALLEST_SCALE_SPREAD = 0.02
"""The scale map's colours reach at least this far from the shares by token count."""
ON_BLACK = "dark_background"
"""Matplotlib's style: films are read on black, and white beside them dazzles."""
PANEL_INCHES = 3.3
BAR_INCHES = 0.5
DPI = 110


@dataclass(frozen=True)
class _Layer:
    """One map as it is drawn."""

    title: str
    values: NDArray[np.float32]
    colours: str
    norm: Normalize
    opacity: NDArray[np.floating]
    bar_label: str
    mark: str | None


@style.context(ON_BLACK)
def film_figure(explanation: FilmExplanation) -> Figure:
    """The film as the network got it, once; then a row for each map: heat map, overlay, bar."""
    layers = _layers(explanation)
    rows = max(1, len(layers))
    figure = Figure(figsize=(3 * PANEL_INCHES + 0.9, rows * (PANEL_INCHES + 0.35) + 0.75))
    figure.set_layout_engine("constrained")
    axes = figure.subplots(rows, 3, squeeze=False)
    for axis in axes.flat:
        axis.set_axis_off()
    _show_input(axes[0, 0], explanation)
    height, width = explanation.image.shape
    axes[0, 0].set_title(f"film as the network got it, {height}×{width}", fontsize=9)
    for row, layer in zip(axes, layers, strict=False):
        _show_heat(row[1], layer, explanation)
        row[1].set_title(layer.title, fontsize=9)
        _show_picture(row[2], explanation)
        _overlay(row[2], layer, explanation)
        row[2].set_title("overlay", fontsize=9)
        if layer.mark is None:
            _add_bar(figure, row[2], layer, fraction=0.05, pad=0.02)
    figure.suptitle(_headline(explanation), fontsize=11)
    if explanation.outline is not None:
        _explain_outline(figure)
    return figure


@style.context(ON_BLACK)
def contact_sheet(explanations: Sequence[FilmExplanation]) -> Figure:
    """A row for each film: as the network got it, then the overlay of each map; a bar a column.

    The explanations are of one model and the same methods. The colours of a column mean the same in
    all its rows.
    """
    spread = max((_scale_spread(e.scale) for e in explanations if e.scale is not None), default=0)
    drawn = [_layers(explanation, spread) for explanation in explanations]
    columns = 1 + max(map(len, drawn))
    inches = 2.4
    height = len(explanations) * (inches + 0.28) + 0.5 + BAR_INCHES
    figure = Figure(figsize=(columns * inches, height))
    # The strip at the top is for the first row's titles, which the engine places too high.
    figure.set_layout_engine(
        "constrained", h_pad=0.02, w_pad=0.02, rect=(0, 0, 1, 1 - 0.1 / height)
    )
    axes = figure.subplots(len(explanations), columns, squeeze=False)
    for row, explanation, layers in zip(axes, explanations, drawn, strict=True):
        _show_input(row[0], explanation)
        row[0].set_title(_short_headline(explanation), fontsize=7.5)
        for axis, layer in zip(row[1:], layers, strict=True):
            _show_picture(axis, explanation)
            _overlay(axis, layer, explanation)
            axis.set_title(layer.title, fontsize=7.5)
    for column, layer in enumerate(drawn[0], start=1):
        place = {"location": "bottom", "fraction": BAR_INCHES / height / 2, "pad": 0.01}
        _add_bar(figure, list(axes[:, column]), layer, **place)
    if any(explanation.outline is not None for explanation in explanations):
        _explain_outline(figure)
    return figure


def save_png(figure: Figure, path: Path) -> None:
    """Write a figure as PNG, atomically."""
    write_atomically(path, lambda temporary: figure.savefig(temporary, format="png", dpi=DPI))


def opacity_of(activation: ActivationMap) -> NDArray[np.floating]:
    """How opaque a map lies over its film ``[H, W]``, in 0…1: as strong as its evidence is."""
    undecided = UNDECIDED if activation.method == LESIONS else 0.0
    evidence = np.clip((activation.values - undecided) / (1 - undecided), 0, 1)
    return np.asarray(OVERLAY_STRENGTH * evidence)


def _layers(explanation: FilmExplanation, scale_spread: float | None = None) -> list[_Layer]:
    """The maps as they are drawn; ``scale_spread`` is how far the scale map's colours reach."""
    names = explanation.class_names
    layers = [_heat_layer(a, names[a.class_index]) for a in explanation.maps]
    if explanation.scale is not None:
        spread = _scale_spread(explanation.scale) if scale_spread is None else scale_spread
        layers.append(_scale_layer(explanation.scale, spread))
    return layers


def _heat_layer(activation: ActivationMap, explained: str) -> _Layer:
    return _Layer(
        title=f"{TITLES[activation.method]} for “{explained}”",
        values=activation.values,
        colours=HEAT_COLOURS,
        norm=Normalize(0, 1),
        opacity=opacity_of(activation),
        bar_label="evidence for a malignant lesion, 0.5 undecided"
        if activation.method == LESIONS
        else "evidence, relative to the film's maximum",
        mark=activation.note,
    )


def _scale_layer(scale: ScaleMap, spread: float) -> _Layer:
    fine, by_tokens = scale.fine, scale.token_shares[SCALES[0]]
    shares = ", ".join(f"{name} {percent(share)}" for name, share in scale.film_shares.items())
    return _Layer(
        title=f"{TITLES[SCALE]}: {shares}",
        values=fine,
        colours=SCALE_COLOURS,
        norm=TwoSlopeNorm(by_tokens, max(0, by_tokens - spread), min(1, by_tokens + spread)),
        opacity=OVERLAY_STRENGTH * np.clip(np.abs(fine - by_tokens) / spread, 0, 1),
        bar_label=f"share of {SCALES[0]} (grey: {percent(by_tokens)}, by token count)",
        mark=None,
    )


def _scale_spread(scale: ScaleMap) -> float:
    """How far the shares of the finest scale lie from its share by token count."""
    farthest = float(np.abs(scale.fine - scale.token_shares[SCALES[0]]).max())
    return max(SMALLEST_SCALE_SPREAD, farthest)


def _add_bar(figure: Figure, axes: Any, layer: _Layer, **place: Any) -> None:
    bar = figure.colorbar(ScalarMappable(layer.norm, layer.colours), ax=axes, **place)
    bar.set_label(layer.bar_label, fontsize=8 if "location" not in place else 6.5)
    bar.ax.tick_params(labelsize=7)


def _show_input(axis: Any, explanation: FilmExplanation) -> None:
    """The network's own pixels, not smoothed, where those of :func:`_show_picture` lie."""
    rows, columns = explanation.picture.shape
    axis.imshow(
        explanation.image, cmap="gray", vmin=0, vmax=1, interpolation="nearest",
        extent=(-0.5, columns - 0.5, rows - 0.5, -0.5),
    )  # fmt: skip
    _outline(axis, explanation)


def _show_picture(axis: Any, explanation: FilmExplanation) -> None:
    axis.imshow(explanation.picture, cmap="gray", vmin=0, vmax=1, interpolation="antialiased")
    _outline(axis, explanation)


def _show_heat(axis: Any, layer: _Layer, explanation: FilmExplanation) -> None:
    _draw(axis, layer, explanation, None)
    _outline(axis, explanation)
    _mark(axis, layer)


def _overlay(axis: Any, layer: _Layer, explanation: FilmExplanation) -> None:
    _draw(axis, layer, explanation, layer.opacity)
    _outline(axis, explanation)
    _mark(axis, layer)


def _draw(axis: Any, layer: _Layer, explanation: FilmExplanation, opacity: Any) -> None:
    rows, columns = explanation.picture.shape
    axis.imshow(
        layer.values,
        cmap=layer.colours,
        norm=layer.norm,
        alpha=opacity,
        extent=(-0.5, columns - 0.5, rows - 0.5, -0.5),
        interpolation="bilinear",
    )
    axis.set_axis_off()


def _outline(axis: Any, explanation: FilmExplanation) -> None:
    if explanation.outline is not None:
        axis.contour(
            explanation.outline.astype(float), levels=[0.5], colors=LESION_COLOUR, linewidths=1.4
        )
    axis.set_axis_off()


def _mark(axis: Any, layer: _Layer) -> None:
    if layer.mark is not None:
        axis.text(
            0.5, 0.5, f"map is\n{layer.mark}".replace(": ", ":\n"), transform=axis.transAxes,
            ha="center", va="center", fontsize=7, color="white", wrap=True,
            bbox={"facecolor": "#8a1c1c", "edgecolor": "none", "pad": 5},
        )  # fmt: skip


def _explain_outline(figure: Figure) -> None:
    handle = Line2D([], [], color=LESION_COLOUR, linewidth=1.4, label="annotated lesion")
    figure.legend(handles=[handle], loc="outside lower left", fontsize=8, frameon=False)


def _headline(explanation: FilmExplanation) -> str:
    probabilities = ", ".join(
        f"{name} {percent(probability, 1)}"
        for name, probability in zip(
            explanation.class_names, explanation.probabilities, strict=True
        )
    )
    annotated = _annotation(explanation)
    return (
        f"{spelled(explanation.film.film_id)}: predicted {explanation.predicted} ({probabilities})"
        f"{f' · annotated {annotated}' if annotated else ''}"
    )


def _short_headline(explanation: FilmExplanation) -> str:
    probability = max(explanation.probabilities)
    annotated = _annotation(explanation)
    second_line = f"\nannotated {annotated}" if annotated else ""
    film = spelled(explanation.film.film_id)
    return f"{film}: predicted {explanation.predicted} {percent(probability)}{second_line}"


def _annotation(explanation: FilmExplanation) -> str:
    return ", ".join(dict.fromkeys(f"{f.severity} {f.kind}" for f in explanation.film.findings))
