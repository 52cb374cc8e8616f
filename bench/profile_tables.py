"""The cells of a profiling report, the same in Markdown, HTML and on the terminal."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hmc_fast.bench.compare import Comparison
from hmc_fast.bench.model_variants import OURS
from hmc_fast.bench.profile_record import Measurement, ProfileRecord
from hmc_fast.bench.work import PASSES
from hmc_fast.reporting import milliseconds, number

Cells = tuple[list[str], list[list[str]]]
"""Header and rows."""

_Column = tuple[str, Callable[[Measurement], str]]


def _times(row: Measurement) -> str:
    return " / ".join(milliseconds(v) for v in (row.p20_ms, row.p50_ms, row.p80_ms))


def _outliers(row: Measurement) -> str:
    if row.samples is None:
        return "–"
    return f"{row.outliers} of {row.samples}, worst {milliseconds(row.max_ms)}"


def _peer(row: Measurement) -> str:
    return row.peer + (" (CUDA graph)" if row.launch == "graph" else "")


def _budget(row: Measurement) -> str:
    if row.budget_units is None:
        return "–"
    return f"{row.budget_units:.2f} ({row.budget_tensor})"


_SPEED_UP: _Column = ("against the best other", lambda r: number(r.speed_up, "{:.2f}×"))
_COMMON: tuple[_Column, ...] = (
    ("p20 / p50 / p80, ms", _times),
    ("outliers", _outliers),
)
_KERNEL_COLUMNS: tuple[_Column, ...] = (
    ("pass", lambda r: r.what),
    ("backend", _peer),
    *_COMMON,
    ("TFLOP/s", lambda r: number(r.tflops, "{:.3g}")),
    ("share of ceiling", lambda r: number(r.ceiling_share and 100 * r.ceiling_share, "{:.0f} %")),
    ("peak memory, MiB", lambda r: number(r.peak_mib, "{:.0f}")),
    ("error, budgets", _budget),
    _SPEED_UP,
)
_MODEL_COLUMNS: tuple[_Column, ...] = (
    ("case", lambda r: r.case),
    ("what", lambda r: r.what),
    ("implementation", _peer),
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


def kernel_rows(record: ProfileRecord) -> list[Measurement]:
    """Rows of operators and blocks."""
    return [row for row in record.measurements if row.what in PASSES]


def model_rows(record: ProfileRecord) -> list[Measurement]:
    """Rows of whole models."""
    return [row for row in record.measurements if row.what not in PASSES]


def case_tables(record: ProfileRecord) -> list[CaseTable]:
    """One table a case and precision, fastest first within each pass."""
    timed = [row for row in kernel_rows(record) if row.p50_ms is not None]
    tables = []
    for case, precision in dict.fromkeys((row.case, row.precision) for row in timed):
        own = [row for row in timed if (row.case, row.precision) == (case, precision)]
        own.sort(key=lambda row: (_order(row), row.p50_ms))
        tables.append(CaseTable(f"{case} {precision}", _floors(own), _cells(own, _KERNEL_COLUMNS)))
    return tables


def _order(row: Measurement) -> int:
    return [str(which) for which in PASSES].index(row.what)


def model_table(record: ProfileRecord) -> Cells:
    """All timed rows of whole models."""
    return _cells([r for r in model_rows(record) if r.p50_ms is not None], _MODEL_COLUMNS)


def _cells(rows: Sequence[Measurement], columns: Sequence[_Column]) -> Cells:
    return [name for name, _ in columns], [[cell(row) for _, cell in columns] for row in rows]


def _floors(rows: Sequence[Measurement]) -> list[str]:
    lines = []
    for row in {row.what: row for row in rows}.values():
        if row.flops is None or row.bytes is None:
            continue
        lines.append(
            f"{row.what}: {row.flops / 1e9:.4g} GFLOP, at least {row.bytes / 2**20:.4g} MiB, "
            f"floor {milliseconds(row.floor_ms)} ms ({row.bound}-bound)"
        )
    return lines


def reasons(record: ProfileRecord) -> list[tuple[str, str, str]]:
    """Rows without a figure: what, status, reason. What shares a reason shares a line."""
    by_peer: dict[tuple[str, str, str], dict[str, list[str]]] = {}
    for row in record.measurements:
        if row.status != "ok":
            key = (f"{row.case} {row.precision}", row.status, row.reason or "")
            by_peer.setdefault(key, {}).setdefault(_peer(row), []).append(row.what)
    by_reason: dict[tuple[str, str, str], list[str]] = {}
    for (case, status, reason), peers in by_peer.items():
        passes: dict[str, list[str]] = {}
        for peer, whats in peers.items():
            passes.setdefault(", ".join(whats), []).append(peer)
        for passed, named in passes.items():
            what = f"{', '.join(named)} ({passed})"
            by_reason.setdefault((what, status, reason), []).append(case)
    return [
        (f"{', '.join(cases)}: {what}", status, reason)
        for (what, status, reason), cases in by_reason.items()
    ]


def hows(record: ProfileRecord) -> list[tuple[str, str]]:
    """Which variant of a backend was timed, with operator and pass where there are several."""
    ways: dict[str, dict[str, list[str]]] = {}
    for row in record.measurements:
        if row.how and row.p50_ms is not None:
            operator = row.case.split("@")[0].rsplit("_", 1)[0]
            kinds = ways.setdefault(row.peer, {}).setdefault(row.how, [])
            label = f"{operator} {row.what}"
            if label not in kinds:
                kinds.append(label)
    lines = []
    for peer, variants in ways.items():
        texts = [
            how if len(variants) == 1 else f"{how} ({', '.join(kinds)})"
            for how, kinds in variants.items()
        ]
        lines.append((peer, "; ".join(texts)))
    return lines


def amdahl_lines(record: ProfileRecord) -> list[str]:
    """What attention costs a model, and the speed-up that free attention would give.

    The share is that of HMC-Net's time over plain ResNet50's, both eager, so it holds the blocks'
    projections too.
    """
    rows = [r for r in model_rows(record) if r.p50_ms is not None and r.launch == "stream"]
    times = {(r.case, r.what, r.peer): r.p50_ms for r in rows if r.p50_ms is not None}
    lines = []
    for (case, what, peer), ours in times.items():
        if peer != "eager" or not case.startswith("hmc_net@"):
            continue
        plain = times.get((case.replace("hmc_net", "resnet50", 1), what, "eager"))
        if plain is None:
            continue
        share = 1 - plain / ours
        reached = [t for (c, w, p), t in times.items() if (c, w) == (case, what) and p in OURS]
        line = (
            f"{case} {what}: the attention blocks take {100 * share:.0f} % of the eager time, so "
            f"free attention would make it {ours / plain:.2f}× as fast"
        )
        if reached:
            line += f"; the fused kernels make it {ours / min(reached):.2f}×"
        lines.append(line + ".")
    return lines


def ceiling_table(record: ProfileRecord) -> Cells:
    """The measured ceilings."""
    header = ["precision", "matrix product", "TFLOP/s", "copy", "GB/s (read and written)"]
    cells = [
        [
            c.precision,
            f"{c.matmul_side}³",
            f"{c.matmul_tflops:.4g}",
            f"{c.copy_bytes / 2**20:.0f} MiB",
            f"{c.copy_gb_per_s:.4g}",
        ]
        for c in record.ceilings
    ]
    return header, cells


def resource_table(record: ProfileRecord) -> Cells:
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
            cells.append([name, r.kernel, r.fault, "–", "–", "–", "–", r.architecture])
            continue
        numbers = [str(r.registers), str(r.stack_bytes), f"{r.shared_kib:.0f}"]
        cells.append([name, r.kernel, r.tile, *numbers, r.mma, r.architecture])
    return header, cells


def comparison_table(comparisons: Sequence[Comparison]) -> Cells:
    """One line a measurement."""
    header = ["measurement", "old, ms", "new, ms", "new / old", "noise band", "verdict", "note"]
    cells = [
        [
            c.label,
            milliseconds(c.old_ms),
            milliseconds(c.new_ms),
            number(c.ratio, "{:.3f}"),
            number(c.band and 100 * c.band, "± {:.0f} %"),
            c.verdict,
            c.note or "",
        ]
        for c in comparisons
    ]
    return header, cells
