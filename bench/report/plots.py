"""Plots of records, as base64 PNG for the HTML report."""

from collections.abc import Callable, Sequence
from itertools import cycle
from math import log2
from operator import attrgetter
from typing import Any

from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

from hmc_fast.bench.measuring.ceilings import Ceiling
from hmc_fast.bench.peers import PEERS, family_names
from hmc_fast.bench.record import Measurement, Record
from hmc_fast.bench.report.tables import image_size
from hmc_fast.reporting import (
    BLUE,
    GREEN,
    GREY,
    ORANGE,
    VERMILION,
    milliseconds,
    new_figure,
    png_base64,
)

PEER_COLOURS = {peer.name: peer.colour for peer in PEERS}
OTHER_COLOUR = "#000000"
"""Of peers in old records that are no more."""
PASS_MARKERS = {"forward": "o", "backward": "s", "both": "^"}
OURS = family_names("ours")


def roofline(record: Record) -> str | None:
    """Every timed operator and block under the two measured ceilings."""
    rows = [r for r in record.kernel_rows if r.tflops and r.flops and r.bytes]
    precisions = [
        c.precision for c in record.ceilings if any(r.precision == c.precision for r in rows)
    ]
    if not precisions:
        return None
    figure = new_figure(3.8 * len(precisions))
    axes = figure.subplots(len(precisions), 1, squeeze=False)[:, 0]
    for axis, precision in zip(axes, precisions, strict=True):
        ceiling = record.ceiling(precision)
        assert ceiling is not None
        _draw_roof(axis, ceiling, [r for r in rows if r.precision == precision])
    figure.legend(handles=_legend(rows), loc="outside lower center", ncols=4, frameon=False)
    return png_base64(figure)


def _draw_roof(axis: Any, ceiling: Ceiling, rows: Sequence[Measurement]) -> None:
    """One precision; cases are named above the axes, where no marker is."""
    intensities = [(r.flops or 0) / (r.bytes or 1) for r in rows]
    ridge = ceiling.flops_per_s / ceiling.bytes_per_s
    low, high = min([*intensities, ridge]) / 2, max([*intensities, ridge]) * 2
    roof = [min(x * ceiling.bytes_per_s / 1e12, ceiling.matmul_tflops) for x in (low, ridge, high)]
    axis.plot([low, ridge, high], roof, color="black", linewidth=1.5)
    for row, x in zip(rows, intensities, strict=True):
        colour = PEER_COLOURS.get(row.peer, OTHER_COLOUR)
        doubtful = (row.ceiling_share or 0) > 1
        axis.plot(
            x,
            row.tflops,
            PASS_MARKERS[row.task],
            color=colour,
            markerfacecolor="none" if doubtful else colour,
            markersize=6,
        )
    axis.set_xscale("log")
    axis.set_yscale("log")
    for side in (axis.xaxis, axis.yaxis):
        _plain_ticks(side)
    cases = axis.secondary_xaxis("top")
    places = _case_positions(rows, intensities)
    cases.set_xticks(list(places.values()), list(places), rotation=25, ha="left", fontsize=8)
    cases.xaxis.set_minor_locator(NullLocator())
    axis.set_xlabel("operations per byte that must be moved")
    axis.set_ylabel("TFLOP/s")
    axis.set_title(
        f"{ceiling.precision}: at most {ceiling.matmul_tflops:.3g} TFLOP/s, "
        f"{ceiling.copy_gb_per_s:.4g} GB/s"
    )
    axis.grid(True, color="#eeeeee")


def _plain_ticks(axis: Any) -> None:
    """Numbers, not powers of ten, at 1, 2 and 5 of every decade of a logarithmic axis."""
    axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
    axis.set_major_formatter("{x:g}")
    axis.set_minor_locator(NullLocator())


def _case_positions(rows: Sequence[Measurement], intensities: Sequence[float]) -> dict[str, float]:
    """Where a case's name goes: at its smallest intensity, one name where several share it."""
    by_case: dict[str, float] = {}
    for row, x in zip(rows, intensities, strict=True):
        by_case[row.case] = min(x, by_case.get(row.case, x))
    by_place: dict[float, list[str]] = {}
    for case, x in by_case.items():
        by_place.setdefault(round(5 * log2(x)), []).append(case)
    return {", ".join(cases): by_case[cases[0]] for cases in by_place.values()}


def _legend(rows: Sequence[Measurement]) -> list[Line2D]:
    peers = [peer for peer in PEER_COLOURS if any(r.peer == peer for r in rows)]
    passes = [p for p in PASS_MARKERS if any(r.task == p for r in rows)]
    lines = [
        Line2D([], [], color=PEER_COLOURS[p], marker="o", linestyle="", label=p) for p in peers
    ]
    lines += [
        Line2D([], [], color="black", marker=PASS_MARKERS[p], linestyle="", label=p) for p in passes
    ]
    if any((r.ceiling_share or 0) > 1 for r in rows):
        hollow = Line2D([], [], color="black", marker="o", linestyle="", markerfacecolor="none")
        hollow.set_label("over the ceiling, doubtful")
        lines.append(hollow)
    return lines


def speed_up_bars(record: Record) -> str | None:
    """Speed of every peer over the eager reference, per case and pass; the faster launch counts."""
    groups: dict[str, dict[str, float]] = {}
    for row in record.kernel_rows:
        if row.p50_ms is not None:
            times = groups.setdefault(f"{row.case} {row.precision} {row.task}", {})
            times[row.peer] = min(row.p50_ms, times.get(row.peer, row.p50_ms))
    groups = {name: times for name, times in groups.items() if "eager" in times and len(times) > 1}
    if not groups:
        return None
    peers = [p for p in PEER_COLOURS if p != "eager" and any(p in t for t in groups.values())]
    count = sum(len(times) - 1 for times in groups.values())
    figure = new_figure(0.2 * count + 0.25 * len(groups) + 1.2)
    axis = figure.subplots()
    position, ticks = 0.0, []
    for times in groups.values():
        start = position
        for peer in peers:
            if peer in times:
                speed = times["eager"] / times[peer]
                axis.barh(position, speed, height=0.85, color=PEER_COLOURS[peer])
                text = axis.text(speed, position, f" {speed:.2f}×", va="center", fontsize=8)
                text.set_bbox({"facecolor": "white", "edgecolor": "none", "pad": 0.5})
                position += 1
        ticks.append((start + position - 1) / 2)
        position += 0.8
    axis.set_yticks(ticks, list(groups), fontsize=8)
    axis.axvline(1, color="black", linewidth=1, zorder=1)
    axis.margins(x=0.12, y=0.01)
    axis.invert_yaxis()
    axis.set_xlabel("speed over the eager reference")
    figure.legend(
        handles=[Line2D([], [], color=PEER_COLOURS[p], linewidth=6, label=p) for p in peers],
        loc="outside upper center",
        ncols=4,
        frameon=False,
    )
    return png_base64(figure)


def waterfall(records: Sequence[tuple[str, Record]]) -> str | None:
    """How our forward time of a case came down to the floor, record by record, oldest first.

    None for one record: what it compares are alternatives, which do not add up.
    """
    latest = records[-1][1]
    case = _waterfall_case(latest)
    if case is None:
        return None
    steps = _history(records, case)
    floors = [r.floor_ms for r in latest.kernel_rows if _is(r, case) and r.floor_ms]
    if len(steps) < 2 or not floors:
        return None
    floor = floors[0]
    figure = new_figure(3.8)
    axis = figure.subplots()
    names = [name for name, _ in steps]
    for i, (_, value) in enumerate(steps):
        previous = steps[i - 1][1] if i else value
        axis.bar(i, value, color=BLUE, width=0.6)
        gained = previous - value
        colour = GREEN if gained >= 0 else VERMILION
        axis.bar(i, abs(gained), bottom=min(value, previous), color=colour, alpha=0.4, width=0.6)
        note = f"{milliseconds(value)} ms" + (f"\n{previous / value:.2f}×" if i else "")
        axis.text(i, max(value, previous), note, ha="center", va="bottom", fontsize=9)
    axis.bar(len(steps), floor, color=ORANGE, width=0.6)
    axis.text(len(steps), floor, f"{milliseconds(floor)} ms", ha="center", va="bottom", fontsize=9)
    axis.set_xticks(range(len(steps) + 1), [*names, "floor"])
    axis.set_ylim(0, 1.2 * max(value for _, value in steps))
    axis.set_ylabel("median, ms")
    axis.set_title(f"{case[0]} {case[1]} forward")
    return png_base64(figure)


def _waterfall_case(record: Record) -> tuple[str, str] | None:
    timed = [r for r in record.kernel_rows if r.p50_ms is not None and r.task == "forward"]
    first = next((r for r in timed if r.peer in OURS), None)
    return (first.case, first.precision) if first is not None else None


def _is(row: Measurement, case: tuple[str, str]) -> bool:
    return (row.case, row.precision, row.task) == (*case, "forward") and row.p50_ms is not None


def _fastest(record: Record, case: tuple[str, str], peers: Sequence[str]) -> Measurement | None:
    rows = [r for r in record.kernel_rows if _is(r, case) and r.peer in peers]
    return min(rows, key=lambda r: r.p50_ms or 0, default=None)


def _history(
    records: Sequence[tuple[str, Record]], case: tuple[str, str]
) -> list[tuple[str, float]]:
    fastest = [(name, _fastest(record, case, OURS)) for name, record in records]
    return [
        (name, row.p50_ms) for name, row in fastest if row is not None and row.p50_ms is not None
    ]


_SIZE: Callable[[Measurement], int] = attrgetter("size")
_BATCH: Callable[[Measurement], int] = attrgetter("batch")


def memory_by_resolution(record: Record) -> str | None:
    """Peak memory of inference over the image size, at the batch with the most sizes."""
    rows = [r for r in _inferences(record) if r.peak_mib is not None]
    batch = _richest(rows, by=_BATCH, count=_SIZE)
    shown = [r for r in rows if r.batch == batch]
    title = f"peak memory of inference, batch {batch}, MiB"
    return _curves(shown, _SIZE, lambda r: r.peak_mib, "side of the image, pixels", title)


def latency_by_batch(record: Record) -> str | None:
    """Latency of inference over the batch, at the image size with the most batches."""
    rows = _inferences(record)
    size = _richest(rows, by=_SIZE, count=_BATCH)
    shown = [r for r in rows if r.size == size]
    title = f"latency of inference at {image_size(record, size)}, ms"
    return _curves(shown, _BATCH, lambda r: r.p50_ms, "batch", title)


def _inferences(record: Record) -> list[Measurement]:
    rows = [r for r in record.model_rows if r.task == "inference" and r.p50_ms is not None]
    return [r for r in rows if r.launch == "stream"]


def _richest(
    rows: Sequence[Measurement],
    by: Callable[[Measurement], int],
    count: Callable[[Measurement], int],
) -> int:
    """The value of ``by`` that has the most different values of ``count``; 0 without rows."""
    groups: dict[int, set[int]] = {}
    for row in rows:
        groups.setdefault(by(row), set()).add(count(row))
    return max(groups, key=lambda value: len(groups[value]), default=0)


def _curves(
    rows: Sequence[Measurement],
    x: Callable[[Measurement], int],
    y: Callable[[Measurement], float | None],
    x_label: str,
    y_label: str,
) -> str | None:
    """A line for each model, peer and precision that has two points or more."""
    lines: dict[tuple[str, str, str], list[tuple[int, float]]] = {}
    for row in rows:
        value = y(row)
        if value is not None:
            lines.setdefault((row.subject, row.peer, row.precision), []).append((x(row), value))
    lines = {name: sorted(points) for name, points in lines.items() if len(points) > 1}
    if not lines:
        return None
    figure = new_figure(4.2 + 0.12 * len(lines))
    axis = figure.subplots()
    for marker, ((model, peer, precision), points) in zip(
        cycle("os^DvPX"), lines.items(), strict=False
    ):
        plain = model.startswith("resnet")
        axis.plot(
            *zip(*points, strict=True),
            marker=marker,
            markerfacecolor="none",
            linestyle="--" if plain else "-",
            color=PEER_COLOURS.get(peer, OTHER_COLOUR),
            label=f"{model} {peer} {precision}",
        )
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    ticks = sorted({point[0] for points in lines.values() for point in points})
    axis.set_xticks(ticks, [str(tick) for tick in ticks])
    axis.xaxis.set_minor_locator(NullLocator())
    _plain_ticks(axis.yaxis)
    axis.set_xlabel(x_label)
    axis.set_ylabel(y_label)
    axis.grid(True, color="#eeeeee")
    figure.legend(loc="outside lower center", ncols=2, frameon=False, fontsize=9)
    return png_base64(figure)


def latency_and_memory(record: Record) -> str | None:
    """Latency (p50, whisker to p95) and peak memory of every row of the main job."""
    rows = [row for row in record.measurements if row.p50_ms is not None]
    if not rows:
        return None
    figure, upper, lower = _pair_of_axes(len(rows))
    labels, colours = [_label(record, row) for row in rows], [_colour(row) for row in rows]
    p50 = [row.p50_ms or 0 for row in rows]
    whiskers = [(row.p95_ms or 0) - (row.p50_ms or 0) for row in rows]
    upper.barh(labels, p50, xerr=[[0] * len(rows), whiskers], color=colours, capsize=3)
    upper.set_xlabel("latency of one film, ms (bar p50, whisker p95)")
    # Bars tell by their length, so the axis starts at zero unless that would hide the short ones.
    if max(p50) > 20 * min(p50):
        upper.set_xscale("log")
        _plain_ticks(upper.xaxis)
    lower.barh(labels, [row.peak_mib or 0 for row in rows], color=colours)
    lower.set_xlabel("peak memory while inferring, MiB")
    upper.invert_yaxis()
    return png_base64(figure)


def accuracy_across_folds(record: Record) -> str | None:
    """Pooled AUC with its interval, and accuracy over folds, of every row that has them."""
    rows = [(row, row.scores) for row in record.measurements if row.scores is not None]
    rows = [(row, scores) for row, scores in rows if scores.auc is not None]
    if not rows:
        return None
    figure, upper, lower = _pair_of_axes(len(rows))
    for row, scores in rows:
        label, colour = _label(record, row), _colour(row)
        auc, low, high = scores.auc or 0, scores.auc_low or 0, scores.auc_high or 0
        upper.errorbar(
            [auc], [label], xerr=[[auc - low], [high - auc]], fmt="o", color=colour, capsize=4
        )
        spread = scores.accuracy_std
        lower.errorbar(
            [scores.accuracy_mean], [label], xerr=[spread], fmt="s", color=colour, capsize=4
        )
    upper.axvline(0.5, color=GREY, linestyle=":", linewidth=1)
    upper.set_xlim(0, 1)
    upper.set_xlabel("pooled AUC, 95 % interval over patients (dotted: chance)")
    lower.set_xlim(0, 1)
    lower.set_xlabel("accuracy, mean ± std over folds")
    upper.invert_yaxis()
    return png_base64(figure)


def _pair_of_axes(rows: int) -> tuple[Figure, Any, Any]:
    """One above the other, so that both are legible on a phone."""
    figure = new_figure(0.6 * rows + 2)
    upper, lower = figure.subplots(2, 1)
    for axes in (upper, lower):
        axes.margins(y=0.12)  # the first and the last row stand clear of the frame
    lower.invert_yaxis()
    return figure, upper, lower


def _label(record: Record, row: Measurement) -> str:
    return f"{image_size(record, row.size)} {row.peer} {row.precision}"


def _colour(row: Measurement) -> str:
    return PEER_COLOURS.get(row.peer, OTHER_COLOUR)
