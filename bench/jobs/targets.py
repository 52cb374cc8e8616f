"""The speed targets, and what a record says about each: met, missed or not measured."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hmc_fast.bench.peers import family_names
from hmc_fast.bench.record import Measurement, Record
from hmc_fast.reporting import DASH

OPERATOR_CASE = "hsa_c3@1024x8"
BLOCK_CASE = "hsa_block_c3@1024x8"
OURS = family_names("ours")
ATTENTION = family_names("attention")
COMPILED = family_names("compiled", "attention")
TARGET_CASES = (OPERATOR_CASE, BLOCK_CASE)
TARGET_MODEL_CASES = (
    "hmc_net@1024x8",
    "resnet50@1024x8",
    "hmc_net@224x1",
    "resnet50@224x1",
    "hmc_net@512x16/training",
    "resnet50@512x16/training",
)


@dataclass(frozen=True)
class Target:
    """One goal: ``measure`` gives the figure of a record, None where it is not in it."""

    name: str
    goal: float
    stretch: float
    unit: str
    at_most: bool
    measure: Callable[[Record], float | None]

    def state(self, figure: float | None) -> str:
        """``met``, ``stretch met``, ``not met`` or ``not measured``."""
        if figure is None:
            return "not measured"
        if self._reaches(figure, self.stretch):
            return "stretch met"
        return "met" if self._reaches(figure, self.goal) else "not met"

    def text(self, figure: float | None) -> str:
        """``figure`` in the target's unit."""
        if figure is None:
            return DASH
        return f"{figure * 100:.0f} %" if self.unit == "%" else f"{figure:.2f}×"

    def _reaches(self, figure: float, goal: float) -> bool:
        return figure <= goal if self.at_most else figure >= goal


def _find(
    record: Record,
    case: str,
    task: str,
    peers: Sequence[str] | None,
    launch: str | None = None,
) -> list[Measurement]:
    return [
        row
        for row in record.measurements
        if (row.case, row.task, row.status) == (case, task, "ok")
        and (row.peer in peers if peers is not None else row.peer not in OURS)
        and launch in (None, row.launch)
        and row.p50_ms is not None
    ]


def _fastest(rows: Sequence[Measurement]) -> Measurement | None:
    return min(rows, key=lambda row: row.p50_ms or float("inf"), default=None)


def _matmul_share(task: str) -> Callable[[Record], float | None]:
    def measure(record: Record) -> float | None:
        ours = _fastest(_find(record, OPERATOR_CASE, task, OURS))
        ceiling = record.ceiling(ours.precision) if ours is not None else None
        if ours is None or ours.tflops is None or ceiling is None:
            return None
        return ours.tflops / ceiling.matmul_tflops

    return measure


def _speed_up(
    case: str, task: str, against: Sequence[str] | None = None
) -> Callable[[Record], float | None]:
    def measure(record: Record) -> float | None:
        ours = _fastest(_find(record, case, task, OURS))
        if ours is None or not ours.p50_ms:
            return None
        # Others in a wider type are slower for that reason alone.
        others = [r for r in _find(record, case, task, against) if r.precision == ours.precision]
        theirs = _fastest(others)
        return theirs.p50_ms / ours.p50_ms if theirs is not None and theirs.p50_ms else None

    return measure


def _latency_ratio(case: str, plain: str) -> Callable[[Record], float | None]:
    """Latencies as CUDA graphs."""

    def measure(record: Record) -> float | None:
        ours = _fastest(_find(record, case, "inference", OURS, "graph"))
        plain_rows = _find(record, plain, "inference", None, "graph")
        base = _fastest([r for r in plain_rows if ours and r.precision == ours.precision])
        if ours is None or base is None or not ours.p50_ms or not base.p50_ms:
            return None
        return ours.p50_ms / base.p50_ms

    return measure


def _memory_ratio(case: str, plain: str, task: str) -> Callable[[Record], float | None]:
    """Peak memory over that of the plain trunk in eager mode."""

    def measure(record: Record) -> float | None:
        ours = [r.peak_mib for r in _find(record, case, task, OURS, "stream") if r.peak_mib]
        base = [r.peak_mib for r in _find(record, plain, task, ["eager"], "stream") if r.peak_mib]
        return min(ours) / min(base) if ours and base else None

    return measure


TARGETS: tuple[Target, ...] = (
    Target(
        f"attention forward, {OPERATOR_CASE}, share of the measured matrix-product rate",
        0.65,
        0.85,
        "%",
        False,
        _matmul_share("forward"),
    ),
    Target(
        f"attention backward, {OPERATOR_CASE}, share of the measured matrix-product rate",
        0.45,
        0.60,
        "%",
        False,
        _matmul_share("backward"),
    ),
    Target(
        f"attention forward, {OPERATOR_CASE}, against the best of FlashAttention-3, SDPA and "
        "FlexAttention",
        1.0,
        1.2,
        "×",
        False,
        _speed_up(OPERATOR_CASE, "forward", ATTENTION),
    ),
    Target(
        f"attention forward and backward, {OPERATOR_CASE}, against the same",
        1.3,
        1.8,
        "×",
        False,
        _speed_up(OPERATOR_CASE, "both", ATTENTION),
    ),
    Target(
        f"whole block forward, {BLOCK_CASE}, against torch.compile with its best backend",
        1.5,
        2.5,
        "×",
        False,
        _speed_up(BLOCK_CASE, "forward", COMPILED),
    ),
    Target(
        "HMC-Net inference, 1024², batch 8, against torch.compile with its best backend",
        1.5,
        2.5,
        "×",
        False,
        _speed_up("hmc_net@1024x8", "inference", COMPILED),
    ),
    Target(
        "its peak memory against plain ResNet50",
        1.2,
        1.05,
        "×",
        True,
        _memory_ratio("hmc_net@1024x8", "resnet50@1024x8", "inference"),
    ),
    Target(
        "HMC-Net 224², batch 1, CUDA graph, latency against plain ResNet50",
        1.3,
        1.15,
        "×",
        True,
        _latency_ratio("hmc_net@224x1", "resnet50@224x1"),
    ),
    Target(
        "HMC-Net training step, 512², batch 16, against torch.compile with its best backend",
        1.3,
        2.0,
        "×",
        False,
        _speed_up("hmc_net@512x16", "training", COMPILED),
    ),
    Target(
        "its peak memory against plain ResNet50's training step",
        1.4,
        1.2,
        "×",
        True,
        _memory_ratio("hmc_net@512x16", "resnet50@512x16", "training"),
    ),
)


def target_rows(record: Record | None) -> list[list[str]]:
    """Cells of the target table: target, target, stretch, measured, state."""
    rows = []
    for target in TARGETS:
        figure = target.measure(record) if record is not None else None
        sign = "≤ " if target.at_most else ""
        goals = [f"{sign}{target.text(goal)}" for goal in (target.goal, target.stretch)]
        rows.append([target.name, *goals, target.text(figure), target.state(figure)])
    return rows


TARGET_HEADER = ["figure", "target", "stretch", "measured", "state"]
