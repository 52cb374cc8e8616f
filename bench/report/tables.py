"""The cells of a report, the same in Markdown, HTML and on the terminal."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hmc_fast.bench.cases import PASSES
from hmc_fast.bench.measuring.load import load_marks
from hmc_fast.bench.peers import family_names
from hmc_fast.bench.record import FoldScores, Measurement, Record
from hmc_fast.bench.report.compare import Comparison
from hmc_fast.evaluation import METRIC_NAMES, mean_and_std
from hmc_fast.reporting import (
    DASH,
    metric_title,
    milliseconds,
    number,
    plus_minus,
    with_interval,
)
from hmc_fast.training import TrainingConfig

Cells = tuple[list[str], list[list[str]]]
"""Header and rows."""

_Column = tuple[str, Callable[[Measurement], str]]


def _times(row: Measurement) -> str:
    return " / ".join(milliseconds(v) for v in (row.p20_ms, row.p50_ms, row.p80_ms))


def _outliers(row: Measurement) -> str:
    if row.samples is None:
        return DASH
    return f"{row.outliers} of {row.samples}, worst {milliseconds(row.max_ms)}"


def ceiling_share(row: Measurement) -> str:
    """Per cent; above 100 the row or the ceiling was measured wrongly, which is said."""
    percent = None if row.ceiling_share is None else 100 * row.ceiling_share
    doubtful = percent is not None and percent > 100
    return number(percent, "{:.0f} %") + (" (over the ceiling, doubtful)" if doubtful else "")


def _peer(row: Measurement) -> str:
    return row.peer + (" (CUDA graph)" if row.launch == "graph" else "")


def _budget(row: Measurement) -> str:
    if row.budget_units is None:
        return DASH
    return f"{row.budget_units:.2f} ({row.budget_tensor})"


_LOAD: _Column = ("under load", lambda r: ", ".join(load_marks(r.load)) or DASH)
_SPEED_UP: _Column = ("against the best other", lambda r: number(r.speed_up, "{:.2f}×"))
_COMMON: tuple[_Column, ...] = (
    ("p20 / p50 / p80, ms", _times),
    _LOAD,
    ("outliers", _outliers),
    ("host, ms", lambda r: milliseconds(r.host_p50_ms)),
)
_KERNEL_COLUMNS: tuple[_Column, ...] = (
    ("pass", lambda r: r.task),
    ("peer", _peer),
    *_COMMON,
    ("TFLOP/s", lambda r: number(r.tflops, "{:.3g}")),
    ("share of ceiling", ceiling_share),
    ("peak memory, MiB", lambda r: number(r.peak_mib, "{:.0f}")),
    ("error, budgets", _budget),
    _SPEED_UP,
)
_MODEL_COLUMNS: tuple[_Column, ...] = (
    ("case", lambda r: r.case),
    ("task", lambda r: r.task),
    ("precision", lambda r: r.precision),
    ("peer", _peer),
    *_COMMON,
    ("images/s", lambda r: number(r.throughput_per_s, "{:.1f}")),
    ("peak memory, MiB", lambda r: number(r.peak_mib, "{:.0f}")),
    ("error, budgets", _budget),
    _SPEED_UP,
)


@dataclass(frozen=True)
class CaseTable:
    """All timed rows of one operator or block case, with its floors."""

    title: str
    floors: list[str]
    cells: Cells


def case_tables(record: Record) -> list[CaseTable]:
    """One table a case and precision, fastest first within each pass."""
    timed = [row for row in record.kernel_rows if row.p50_ms is not None]
    tables = []
    for case, precision in dict.fromkeys((row.case, row.precision) for row in timed):
        shown = [row for row in timed if (row.case, row.precision) == (case, precision)]
        shown.sort(key=lambda row: (_order(row), row.p50_ms))
        tables.append(
            CaseTable(f"{case} {precision}", _floors(shown), _cells(shown, _KERNEL_COLUMNS))
        )
    return tables


def _order(row: Measurement) -> int:
    return [str(task) for task in PASSES].index(row.task)


def model_table(record: Record) -> Cells:
    """All timed rows of whole models."""
    return _cells([r for r in record.model_rows if r.p50_ms is not None], _MODEL_COLUMNS)


def _cells(rows: Sequence[Measurement], columns: Sequence[_Column]) -> Cells:
    return [name for name, _ in columns], [[cell(row) for _, cell in columns] for row in rows]


def _floors(rows: Sequence[Measurement]) -> list[str]:
    lines = []
    for row in {row.task: row for row in rows}.values():
        if row.flops is None or row.bytes is None:
            continue
        lines.append(
            f"{row.task}: {row.flops / 1e9:.4g} GFLOP, at least {row.bytes / 2**20:.4g} MiB, "
            f"floor {milliseconds(row.floor_ms)} ms ({row.bound}-bound)"
        )
    return lines


def reasons(record: Record) -> list[tuple[str, str, str]]:
    """Rows without a figure: name, status, reason. Rows that share a reason share a line."""
    by_peer: dict[tuple[str, str, str], dict[str, list[str]]] = {}
    for row in record.measurements:
        if row.reason or row.status != "ok":
            key = (f"{row.case} {row.precision}", row.status, row.reason or "")
            by_peer.setdefault(key, {}).setdefault(_peer(row), []).append(row.task)
    by_reason: dict[tuple[str, str, str], list[str]] = {}
    for (case, status, reason), peers in by_peer.items():
        passes: dict[str, list[str]] = {}
        for peer, tasks in peers.items():
            passes.setdefault(", ".join(tasks), []).append(peer)
        for passed, named in passes.items():
            name = f"{', '.join(named)} ({passed})"
            by_reason.setdefault((name, status, reason), []).append(case)
    return [
        (f"{', '.join(cases)}: {name}", status, reason)
        for (name, status, reason), cases in by_reason.items()
    ]


def variants(record: Record) -> list[tuple[str, str]]:
    """The variant of a peer that counts, with operator and task where there are several.

    Behind it what became of its other variants.
    """
    timed: dict[str, dict[str, list[str]]] = {}
    for row in record.measurements:
        if row.variant and row.p50_ms is not None:
            labels = timed.setdefault(row.peer, {}).setdefault(row.variant, [])
            label = f"{row.subject.rsplit('_c', 1)[0]} {row.task}"
            if label not in labels:
                labels.append(label)
    lines = []
    for peer, names in timed.items():
        texts = [
            name if len(names) == 1 else f"{name} ({', '.join(labels)})"
            for name, labels in names.items()
        ]
        lines.append((peer, "; ".join(texts)))
    for row in record.measurements:
        others = {name: fate for name, fate in (row.tried or {}).items() if name != row.variant}
        if others:
            fates = [
                f"{name}: {fate if isinstance(fate, str) else milliseconds(fate) + ' ms'}"
                for name, fate in others.items()
            ]
            lines.append((f"{row.label}, slower or not at all", "; ".join(fates)))
    return lines


def _difference(value: float) -> str:
    return f"{value:.1e}" if value else "0"


def _score(form: Callable[[FoldScores], str]) -> Callable[[Measurement], str]:
    return lambda row: DASH if row.scores is None else form(row.scores)


_FOLD_COLUMNS: tuple[_Column, ...] = (
    ("size", lambda r: f"{r.size}²"),
    ("peer", _peer),
    ("precision", lambda r: r.precision),
    (
        "latency p50 / p95, ms",
        lambda r: (
            DASH if r.p50_ms is None else f"{milliseconds(r.p50_ms)} / {milliseconds(r.p95_ms)}"
        ),
    ),
    _LOAD,
    ("films/s", lambda r: number(r.throughput_per_s, "{:.1f}")),
    ("peak memory, MiB", lambda r: number(r.peak_mib, "{:.0f}")),
    ("accuracy across folds", _score(lambda s: plus_minus(s.accuracy_mean, s.accuracy_std))),
    ("pooled AUC [95 % CI]", _score(lambda s: with_interval(s.auc, s.auc_low, s.auc_high))),
    ("largest Δlogit", _score(lambda s: _difference(s.max_logit_difference))),
    ("flips", _score(lambda s: str(s.flipped_decisions))),
    ("ΔAUC", _score(lambda s: number(s.auc_difference, "{:+.4f}"))),
    ("error, budgets", lambda r: _budget(r) if r.status == "ok" else r.status),
)


NOT_RUN = ("unavailable", "skipped")
"""Of these a row has nothing but its reason."""


def fold_table(record: Record) -> Cells:
    """The main job's one table: speed, memory and accuracy of every peer and precision.

    Engines that were only built come after what ran, and what could not run last: on most machines
    that is much.
    """
    measurements = sorted(
        record.measurements, key=lambda row: (row.status in NOT_RUN, row.status == "built")
    )
    header, rows = _cells(measurements, _FOLD_COLUMNS)
    sizes = [image_size(record, row.size) for row in measurements]
    return header, [[size, *cells[1:]] for size, cells in zip(sizes, rows, strict=True)]


def training_of(record: Record) -> TrainingConfig:
    """How the main job's folds were trained."""
    return TrainingConfig(**record.options["training"])


def image_size(record: Record, height: int) -> str:
    """Rows and columns of a record's images of a height: square but for the main job's films."""
    if record.study is None:
        return f"{height}²"
    image = training_of(record).preprocessing(record.options["model"]).at_height(height)
    return f"{height}²" if image.width == height else f"{height}×{image.width}"


def fold_metric_table(record: Record) -> Cells:
    """Metrics of eager fp32 fold by fold, and over folds."""
    assert record.study is not None
    folds = record.study.fold_metrics
    cells = [
        [str(i), *(number(fold[name], "{:.3f}") for name in METRIC_NAMES)]
        for i, fold in enumerate(folds, start=1)
    ]
    summary = mean_and_std(folds)
    texts = [summary[name] for name in METRIC_NAMES]
    over = [plus_minus(*text) if text else "undefined in a fold" for text in texts]
    return ["fold", *map(metric_title, METRIC_NAMES)], [*cells, ["mean ± std", *over]]


def history_table(records: Sequence[tuple[str, Record]]) -> Cells:
    """Medians in ms of every row of the last record, in all of them, where any has one."""
    medians = [{row.key: row.p50_ms for row in record.measurements} for _, record in records]
    cells = []
    for row in records[-1][1].measurements:
        times = [median.get(row.key) for median in medians]
        if any(time is not None for time in times):
            cells.append([row.label, *map(milliseconds, times)])
    return ["measurement", *(name for name, _ in records)], cells


def amdahl_lines(record: Record) -> list[str]:
    """What attention costs a model, and the speed-up that free attention would give.

    The share is that of HMC-Net's time over plain ResNet50's, both eager, so it holds the blocks'
    projections too.
    """
    rows = [r for r in record.model_rows if r.p50_ms is not None and r.launch == "stream"]
    ours_names = family_names("ours")
    times = {(r.case, r.task, r.precision, r.peer): r.p50_ms for r in rows if r.p50_ms is not None}
    lines = []
    for (case, task, precision, peer), ours in times.items():
        if peer != "eager" or not case.startswith("hmc_net@"):
            continue
        plain = times.get((case.replace("hmc_net", "resnet50", 1), task, precision, "eager"))
        if plain is None:
            continue
        share = 1 - plain / ours
        reached = {
            name: times[case, task, precision, name]
            for name in ours_names
            if (case, task, precision, name) in times
        }
        line = (
            f"{case} {task} {precision}: the attention blocks take {100 * share:.0f} % of the "
            f"eager time, so free attention would make it {ours / plain:.2f}× as fast"
        )
        if reached:
            best = min(reached, key=reached.__getitem__)
            line += f"; {best} makes it {ours / reached[best]:.2f}×"
        lines.append(line + ".")
    return lines


def ceiling_table(record: Record) -> Cells:
    """The measured ceilings."""
    header = [
        "precision",
        "when",
        "matrix product",
        "by",
        "TFLOP/s",
        "copy",
        "GB/s (read and written)",
    ]
    cells = [
        [
            c.precision,
            f"{c.when} the cases",
            f"{c.matmul_side}³",
            c.matmul_by,
            f"{c.matmul_tflops:.4g}",
            f"{c.copy_bytes / 2**20:.0f} MiB",
            f"{c.copy_gb_per_s:.4g}",
        ]
        for c in record.ceilings
    ]
    return header, cells


def clock_table(record: Record) -> Cells:
    """Clocks and reasons for slowing down, seen while each case was timed; a line a timing."""
    header = ["case", "SM clock, MHz", "lowest", "power, W", "temperature, °C", "slowed by"]
    cells = []
    for row in record.measurements:
        clocks = row.clocks or {}
        slowed = {n: v for n, v in clocks.items() if n.startswith("slowed_by_")}
        reasons = [
            f"{name.removeprefix('slowed_by_').removesuffix('_percent').replace('_', ' ')} "
            f"({share:.0f} %)"
            for name, share in slowed.items()
        ]
        names = ("sm_clock_mhz", "lowest_sm_clock_mhz", "power_w", "temperature_c")
        numbers = [number(clocks.get(name), "{:.0f}") for name in names]
        launch = " (CUDA graph)" if row.launch == "graph" else ""
        line = [f"{row.case} {row.task} {row.precision}{launch}", *numbers]
        line.append(", ".join(reasons) or DASH)
        if clocks and line not in cells:  # peers of a case are timed together
            cells.append(line)
    return header, cells


def resource_table(record: Record) -> Cells:
    """What our compiled kernels take."""
    header = [
        "case",
        "kernel",
        "tile",
        "registers",
        "spilled, bytes",
        "shared, KiB",
        "products",
        "for",
    ]
    cells = []
    for r in record.resources:
        name = f"{r.case} {r.precision}"
        if r.fault is not None:
            cells.append([name, r.kernel, r.fault, DASH, DASH, DASH, DASH, r.architecture])
            continue
        numbers = [str(r.registers), str(r.stack_bytes), f"{r.shared_kib:.0f}"]
        cells.append([name, r.kernel, r.tile, *numbers, r.mma, r.architecture])
    return header, cells


def comparison_table(comparisons: Sequence[Comparison]) -> Cells:
    """One line a measurement."""
    header = [
        "measurement",
        "old, ms",
        "new, ms",
        "new / old",
        "noise band",
        "repeats",
        "verdict",
        "note",
    ]
    cells = [
        [
            c.label,
            milliseconds(c.old_ms),
            milliseconds(c.new_ms),
            number(c.ratio, "{:.3f}"),
            number(c.band and 100 * c.band, "± {:.0f} %"),
            _repeats(c),
            c.verdict,
            c.note or "",
        ]
        for c in comparisons
    ]
    return header, cells


def _repeats(comparison: Comparison) -> str:
    if comparison.repeats is None:
        return DASH
    needed = comparison.needed
    more = needed is not None and comparison.verdict == "too noisy to judge"
    return f"{comparison.repeats}, needs {needed}" if more else str(comparison.repeats)
