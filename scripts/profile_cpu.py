"""Where a CPU's time goes in HMC-Net: every moment of a profile belongs to one group.

profile_cpu.py RECORD.json [PAGE]    measures and writes the record, then the page's table
profile_cpu.py --table RECORD.json PAGE    writes the table alone
"""

import time
from collections import Counter
from collections.abc import Callable
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile, record_function

from hmc_fast.bench.cases import Case, parse_case
from hmc_fast.bench.parity import TrainingStep
from hmc_fast.bench.peers import PEERS
from hmc_fast.bench.report.measured import run_script
from hmc_fast.bench.trials import infer, lifelike_model
from hmc_fast.environment import environment
from hmc_fast.reporting import between_marks

MEASURED = (
    ("hmc_net@1024x1", "fp32", "cpu_prepared"),
    ("hmc_net@1024x1", "bf16", "cpu_prepared"),
    ("hmc_net@512x2/training", "fp32", "cpu"),
    ("hmc_net@512x2/training", "fp32", "eager"),
)
GROUPS = {
    "attention": ("hmc_fast::",),
    "convolutions": ("aten::conv", "aten::_conv", "aten::mkldnn_conv", "mkldnn::_conv"),
    "convolutions, backward": ("aten::convolution_backward", "ConvolutionBackward"),
    "batch norms": ("aten::batch_norm", "aten::native_batch_norm", "NativeBatchNormBackward"),
    "projections and other products": ("aten::linear", "aten::addmm", "aten::mm", "aten::matmul"),
    "optimiser": ("Optimizer.",),
}
"""Names of operations that belong to a group with all that they call; the rest is its own group."""
REST = "everything else"
STEP = "step"
REPEATS = 3
BEGIN, END = "<!-- profile:begin -->", "<!-- profile:end -->"


def call_of(case: Case, precision: str, peer: str) -> Callable[[], object]:
    """What is profiled: one inference or one training step."""
    dtype = {"fp32": torch.float32, "bf16": torch.bfloat16}[precision]
    (chosen,) = (candidate for candidate in PEERS if candidate.name == peer)
    variant = chosen.models[0]
    model = lifelike_model(case.subject, case.size)
    if "training" in case.tasks:
        images = case.images(torch.float32, torch.device("cpu"), 0)
        step = TrainingStep(model, variant.prepare(model.train(), images), dtype)
        labels = torch.arange(case.batch) % 2
        return lambda: step((images, labels))
    images = case.images(dtype, torch.device("cpu"), 0)
    call = variant.prepare(model.to(dtype), images)
    return lambda: infer(call, images)


def milliseconds(call: Callable[[], object]) -> dict[str, float]:
    """Of each group, in the profile of one call after one of warm-up; they add up to ``whole``."""
    call()
    with profile(activities=[ProfilerActivity.CPU]) as recorded, record_function(STEP):
        call()
    (root,) = (event for event in recorded.events() if event.name == STEP)
    spent: Counter[str] = Counter()
    _share(root, spent)
    spent["whole"] = root.cpu_time_total
    return {name: microseconds / 1e3 for name, microseconds in spent.items()}


def _share(event: Any, spent: Counter[str]) -> None:
    group = next((g for g, names in GROUPS.items() if event.name.startswith(names)), None)
    if group is not None:
        spent[group] += event.cpu_time_total
        return
    spent[REST] += event.self_cpu_time_total
    for child in event.cpu_children:
        _share(child, spent)


def unprofiled_ms(call: Callable[[], object]) -> float:
    """The fastest of a few calls, without the profiler."""
    times = []
    for _ in range(REPEATS):
        start = time.perf_counter()
        call()
        times.append(time.perf_counter() - start)
    return min(times) * 1e3


def measure() -> dict[str, Any]:
    """The record: every case with its groups, and what it was made with."""
    rows = []
    for name, precision, peer in MEASURED:
        call = call_of(parse_case(name), precision, peer)
        groups = milliseconds(call)
        rows.append(
            {
                "case": name,
                "precision": precision,
                "peer": peer,
                "unprofiled_ms": unprofiled_ms(call),
                "groups_ms": groups,
            }
        )
    made_with = {**environment(), "command": "python scripts/profile_cpu.py"}
    return {"rows": rows, "environment": made_with}


def table(record: dict[str, Any]) -> str:
    """The record as Markdown: groups down, cases across, in ms and as a share of the whole."""
    rows = record["rows"]
    head = ["ms", *(f"{row['case']}, {row['precision']}, {row['peer']}" for row in rows)]
    lines = [head, ["---"] * len(head)]
    present = [g for g in (*GROUPS, REST) if any(g in row["groups_ms"] for row in rows)]
    lines += [[group, *(_cell(row["groups_ms"], group) for row in rows)] for group in present]
    lines.append(["whole", *(f"{row['groups_ms']['whole']:.0f}" for row in rows)])
    lines.append(["without the profiler", *(f"{row['unprofiled_ms']:.0f}" for row in rows)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def _cell(groups: dict[str, float], group: str) -> str:
    value = groups.get(group)
    return "–" if value is None else f"{value:.0f} ({value / groups['whole']:.0%})"


def updated(text: str, record: dict[str, Any]) -> str:
    """``text`` with the table between its marks made again."""
    return between_marks(text, BEGIN, END, table(record))


if __name__ == "__main__":
    run_script(__doc__, measure, updated)
