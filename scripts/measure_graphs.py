"""What blocks of queries cost and save the runtimes that read a graph, in one record.

measure_graphs.py RECORD.json [PAGE]    measures and writes the record, then the page's table
measure_graphs.py --table RECORD.json PAGE    writes the table alone

HMC-Net at 1024², untrained, a film a call. Each runtime is a process of its own, for its memory;
both forms take turns, for their times.
"""

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any, TextIO

import torch

from hmc_fast.bench.report.measured import run_script
from hmc_fast.bench.trials import lifelike_model
from hmc_fast.checkpoint import CheckpointMetadata, save_checkpoint
from hmc_fast.data import Preprocessing
from hmc_fast.environment import environment
from hmc_fast.export import Profile, attention, make_onnx
from hmc_fast.export.onnx_export import write_onnx
from hmc_fast.reporting import between_marks

SIZE = 1024
ROUNDS = 3
WHOLE = "whole"
"""All scores at once: the blocks with no limit."""
RUNTIMES = ("onnxruntime", "openvino")
SERVER = """
import json, sys, time, torch
from pathlib import Path
from hmc_fast.export import load
runner = load(sys.argv[1], runtime=sys.argv[2])
torch.manual_seed(0)
images = torch.randn(1, 3, int(sys.argv[3]), int(sys.argv[3]))
for _ in sys.stdin:
    Path("/proc/self/clear_refs").write_text("5")
    start = time.perf_counter()
    logits = runner(images)
    seconds = time.perf_counter() - start
    status = Path("/proc/self/status").read_text().splitlines()
    peak_kib = next(int(line.split()[1]) for line in status if line.startswith("VmHWM"))
    answer = {"s": seconds, "peak_mib": peak_kib / 1024, "logits": logits.tolist()}
    print(json.dumps(answer), flush=True)
"""
"""Loads a graph, then answers every line; it imports no more than it needs, which would count."""
BEGIN, END = "<!-- graphs:begin -->", "<!-- graphs:end -->"


def write_checkpoint(path: Path) -> Path:
    """HMC-Net with open gates and lifelike batch norms."""
    model = lifelike_model("hmc_net", 224)
    names = ("rest", "malignant")
    square = Preprocessing.square(SIZE)
    save_checkpoint(
        path, model, CheckpointMetadata(model.config, "malignant", names, square, {}, {})
    )
    return path


def write_graphs(folder: Path) -> dict[str, Path]:
    """The fp32 graph of both forms for the CPU's runtimes."""
    checkpoint = write_checkpoint(folder / "model.safetensors")
    paths = {}
    for form, limit in (("blocks", attention.BLOCK_SCORES), (WHOLE, 2**62)):
        attention.BLOCK_SCORES = limit
        paths[form] = folder / f"{form}.onnx"
        write_onnx(make_onnx(checkpoint, profile=Profile(1, 1, 1)), checkpoint, paths[form])
    attention.BLOCK_SCORES = 2**23
    return paths


def measure_runtimes(graphs: dict[str, Path]) -> list[dict[str, Any]]:
    """A row for every runtime and form: seconds of rounds in turn, the highest peak of a call."""
    return [row for runtime in RUNTIMES for row in _measure_runtime(runtime, graphs)]


def _measure_runtime(runtime: str, graphs: dict[str, Path]) -> list[dict[str, Any]]:
    servers = {
        form: subprocess.Popen(
            [sys.executable, "-P", "-c", SERVER, str(path), runtime, str(SIZE)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        for form, path in graphs.items()
    }
    answers: dict[str, list[dict[str, Any]]] = {form: [] for form in servers}
    try:
        for _ in range(1 + ROUNDS):
            for form, server in servers.items():
                assert server.stdin is not None
                assert server.stdout is not None
                answers[form].append(_ask(server.stdin, server.stdout))
    finally:
        for server in servers.values():
            server.kill()
    whole = torch.tensor(answers[WHOLE][0]["logits"])
    return [
        {
            "runtime": runtime,
            "form": form,
            "seconds": [a["s"] for a in rounds[1:]],  # the first one warms up
            "peak_mib": max(a["peak_mib"] for a in rounds),
            "logit_difference": float((torch.tensor(rounds[0]["logits"]) - whole).abs().max()),
        }
        for form, rounds in answers.items()
    ]


def _ask(question: TextIO, answer: TextIO) -> dict[str, Any]:
    question.write("go\n")
    question.flush()
    found: dict[str, Any] = json.loads(answer.readline())
    return found


def measure() -> dict[str, Any]:
    """The record: runtimes, and what they were made with."""
    with tempfile.TemporaryDirectory() as folder:
        runtimes = measure_runtimes(write_graphs(Path(folder)))
    made_with = {**environment(), "command": "python scripts/measure_graphs.py"}
    return {"size": SIZE, "runtimes": runtimes, "environment": made_with}


def table(record: dict[str, Any]) -> str:
    """The record as a Markdown table."""
    fastest = {(r["runtime"], r["form"]): min(r["seconds"]) for r in record["runtimes"]}
    lines = [
        ["runtime", "attention", "fastest call, s", "against the whole graph", "peak memory, GiB"],
        ["---"] * 5,
    ]
    for row in record["runtimes"]:
        seconds = fastest[row["runtime"], row["form"]]
        against = seconds / fastest[row["runtime"], WHOLE]
        peak = f"{row['peak_mib'] / 1024:.1f}"
        form = "all scores at once" if row["form"] == WHOLE else row["form"]
        lines.append([row["runtime"], form, f"{seconds:.2f}", f"{against:.2f}×", peak])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def updated(text: str, record: dict[str, Any]) -> str:
    """``text`` with the table between its marks made again."""
    return between_marks(text, BEGIN, END, table(record))


if __name__ == "__main__":
    run_script(__doc__, measure, updated)
