"""A training step of HMC-Net on a CPU, as it is without this package and as the trainer takes it.

training_step.py RECORD.json [PAGE]    measures and writes the record, then the page's table
training_step.py --table RECORD.json PAGE    writes the table alone
"""

import multiprocessing
import resource
import time
from concurrent.futures import ProcessPoolExecutor
from contextlib import nullcontext
from itertools import product
from statistics import median
from typing import Any

import torch

from hmc_fast.bench.cases import parse_case
from hmc_fast.bench.parity import TrainingStep
from hmc_fast.bench.report.measured import run_script
from hmc_fast.bench.trials import lifelike_model
from hmc_fast.devices import freed_memory_kept, precision_dtype
from hmc_fast.environment import environment
from hmc_fast.models import attention_blocks
from hmc_fast.reporting import between_marks

CASE = parse_case("hmc_net@512x2/training")
PRECISIONS = ("fp32", "bf16")
ATTENTIONS = {"reference": "plain PyTorch", "cpu": "this package's"}
MEMORY = {False: "goes back to the system", True: "is kept"}
TODAY = ("reference", False)
"""Of which every ratio is taken: what one has without the attention and the trainer."""
TURNS, STEPS = 4, 4
BEGIN, END = "<!-- training:begin -->", "<!-- training:end -->"


def take_steps(precision: str, attention: str, kept: bool) -> dict[str, Any]:
    """Times of some steps after one of warm-up, and the peak of this process."""
    model = lifelike_model(CASE.subject, CASE.size).train()
    for block in attention_blocks(model):
        block.backend = attention
    step = TrainingStep(model, model, precision_dtype(precision))
    batch = CASE.images(torch.float32, torch.device("cpu"), 0), torch.arange(CASE.batch) % 2
    times = []
    with freed_memory_kept() if kept else nullcontext():
        for _ in range(1 + STEPS):
            start = time.perf_counter()
            step(batch)
            times.append((time.perf_counter() - start) * 1e3)
    peak_kib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"ms": times[1:], "peak_mib": peak_kib / 1024}


def measure() -> dict[str, Any]:
    """The record: all steps of all ways; each turn is a new process."""
    ways = list(product(PRECISIONS, ATTENTIONS, MEMORY))
    rows = {way: {"ms": [], "peak_mib": 0.0} for way in ways}
    spawn = multiprocessing.get_context("spawn")
    for way in ways * TURNS:
        with ProcessPoolExecutor(1, mp_context=spawn) as pool:
            taken = pool.submit(take_steps, *way).result()
        row = rows[way]
        row["ms"] += taken["ms"]
        row["peak_mib"] = max(row["peak_mib"], taken["peak_mib"])
    made_with = {**environment(), "command": "python scripts/training_step.py"}
    names = ("precision", "attention", "kept")
    return {
        "case": CASE.name,
        "rows": [dict(zip(names, way, strict=True)) | row for way, row in rows.items()],
        "environment": made_with,
    }


def table(record: dict[str, Any]) -> str:
    """The record as Markdown, a row a way."""
    head = [record["case"], "attention", "freed memory", "ms, median", "fastest", "speedup", "MiB"]
    lines = [f"| {' | '.join(head)} |", f"|{' --- |' * len(head)}"]
    first = {
        row["precision"]: median(row["ms"])
        for row in record["rows"]
        if (row["attention"], row["kept"]) == TODAY
    }
    for row in record["rows"]:
        typical = median(row["ms"])
        cells = (
            row["precision"],
            ATTENTIONS[row["attention"]],
            MEMORY[row["kept"]],
            f"{typical:.0f}",
            f"{min(row['ms']):.0f}",
            f"{first[row['precision']] / typical:.2f}×",
            f"{row['peak_mib']:.0f}",
        )
        lines.append(f"| {' | '.join(cells)} |")
    made_with = record["environment"]
    lines += [
        "",
        f"{made_with['cpu']}, {made_with['cpu_threads']} threads, torch "
        f"{made_with['packages']['torch']}, revision {made_with['git_revision']}; "
        f"{len(record['rows'][0]['ms'])} steps a row. The peak is of the whole process. "
        f"[Record](../bench/results/cpu-training.json), made by `{made_with['command']} "
        "bench/results/cpu-training.json docs/benchmark.md`.",
    ]
    return "\n".join(lines)


def updated(text: str, record: dict[str, Any]) -> str:
    """``text`` with the table between its marks made again."""
    return between_marks(text, BEGIN, END, table(record))


if __name__ == "__main__":
    run_script(__doc__, measure, updated)
