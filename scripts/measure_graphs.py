"""What each form of attention costs the runtimes and builders that read a graph, in one record.

measure_graphs.py RECORD.json [PAGE]    measures and writes the record, then the page's table
measure_graphs.py --page PAGE RECORD.json    writes the table alone

HMC-Net at 1024², untrained, a film a call. Each runtime is a process of its own, for its memory;
both forms take turns, for their times. Builders build for a batch of 8, without a GPU.
"""

import json
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median
from typing import Any, TextIO

import torch

from hmc_fast.bench.measuring.memory import reset_resident_peak, resident_peak_mib
from hmc_fast.bench.trials import lifelike_model
from hmc_fast.checkpoint import CheckpointMetadata, save_checkpoint
from hmc_fast.data import Preprocessing
from hmc_fast.environment import environment
from hmc_fast.errors import UserError
from hmc_fast.export import Profile, attention, load, make_onnx
from hmc_fast.export.attention import FORMS
from hmc_fast.export.builders import Builder, BuildRequest
from hmc_fast.export.engine import fused_attentions
from hmc_fast.export.engine_form import engine_form
from hmc_fast.export.onnx_export import OnnxExport, write_onnx
from hmc_fast.progress import no_progress

SIZE = 1024
ROUNDS = 3
BATCH = 8
FLAVOUR = "tensorrt-rtx"
TARGETS = ("sm_86", "sm_89", "sm_120")
WHOLE = "whole"
"""All scores at once: the blocks with no limit."""
RUNTIMES = ("onnxruntime", "openvino")
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


def serve(path: str, runtime: str) -> None:
    """Load a graph, then answer every line with the seconds of a call, its peak and its logits."""
    runner = load(path, runtime=runtime)
    images = torch.randn(1, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))
    for _ in sys.stdin:
        reset_resident_peak()
        start = time.perf_counter()
        logits = runner(images)
        seconds = time.perf_counter() - start
        answer = {"s": seconds, "peak_mib": resident_peak_mib(), "logits": logits.tolist()}
        print(json.dumps(answer), flush=True)


def measure_runtimes(graphs: dict[str, Path]) -> list[dict[str, Any]]:
    """A row for every runtime and form: seconds of rounds in turn, the highest peak of a call."""
    return [row for runtime in RUNTIMES for row in _measure_runtime(runtime, graphs)]


def _measure_runtime(runtime: str, graphs: dict[str, Path]) -> list[dict[str, Any]]:
    servers = {
        form: subprocess.Popen(
            [sys.executable, __file__, "--serve", str(path), runtime],
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


def measure_builds(folder: Path) -> list[dict[str, Any]]:
    """A row for every precision and form: what the builder's log says of an engine."""
    checkpoint = write_checkpoint(folder / "model.safetensors")
    builder = Builder(FLAVOUR)
    rows = []
    for precision in ("fp16", "bf16", "fp32"):
        chosen = engine_form(FLAVOUR, TARGETS, precision)
        for form in FORMS:
            graph = make_onnx(
                checkpoint,
                precision=precision,
                profile=Profile(1, BATCH, BATCH),
                engine_form=form,
            )
            row = {"builder": f"{FLAVOUR} {builder.version}", "precision": precision, "form": form}
            rows.append({**row, "chosen": form == chosen, **_build(builder, graph)})
    return rows


def _build(builder: Builder, graph: OnnxExport) -> dict[str, Any]:
    assert graph.engine is not None
    request = BuildRequest(graph.sidecar.profile, TARGETS, None, False, False)
    try:
        built = builder.build(graph.engine.content, request, no_progress)
    except UserError as error:
        return {"refused": str(error)}
    return {
        "activation_bytes": built.log.activation_bytes,
        "engine_bytes": len(built.content),
        "attentions": graph.engine.attentions,
        "fused": fused_attentions(graph.engine, built.log),
    }


def measure() -> dict[str, Any]:
    """The record: runtimes, builds, and what they were made with."""
    with tempfile.TemporaryDirectory() as folder:
        runtimes = measure_runtimes(write_graphs(Path(folder)))
        builds = measure_builds(Path(folder))
    made_with = {**environment(), "command": "python scripts/measure_graphs.py"}
    return {"size": SIZE, "runtimes": runtimes, "builds": builds, "environment": made_with}


def table(record: dict[str, Any]) -> str:
    """The record as two Markdown tables."""
    medians = {(r["runtime"], r["form"]): median(r["seconds"]) for r in record["runtimes"]}
    lines = [
        ["runtime", "attention", "s a film", "against the whole graph", "peak memory, GiB"],
        ["---"] * 5,
    ]
    for row in record["runtimes"]:
        seconds = medians[row["runtime"], row["form"]]
        against = seconds / medians[row["runtime"], WHOLE]
        peak = f"{row['peak_mib'] / 1024:.1f}"
        form = "all scores at once" if row["form"] == WHOLE else row["form"]
        lines.append([row["runtime"], form, f"{seconds:.2f}", f"{against:.2f}×", peak])
    builds = [
        ["builder", "precision", "form", "activations at batch 8, GB", "engine, MB", "chosen"],
        ["---"] * 6,
    ]
    for row in record["builds"]:
        size = ["refused", "–"]
        if "refused" not in row:
            size = [f"{row['activation_bytes'] / 1e9:.2f}", f"{row['engine_bytes'] / 1e6:.0f}"]
        chosen = "yes" if row["chosen"] else ""
        builds.append([row["builder"], row["precision"], row["form"], *size, chosen])
    return "\n\n".join(_markdown(part) for part in (lines, builds))


def _markdown(lines: list[list[str]]) -> str:
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def updated(text: str, record: dict[str, Any]) -> str:
    """``text`` with the tables between its marks made again."""
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    return f"{before}{BEGIN}\n{table(record)}\n{END}{after}"


def main() -> None:
    if sys.argv[1] == "--serve":
        serve(*sys.argv[2:])
        return
    from hmc_fast.files import write_json, write_text

    if sys.argv[1] == "--page":
        page, file = Path(sys.argv[2]), Path(sys.argv[3])
    else:
        file, page = Path(sys.argv[1]), Path(sys.argv[2]) if sys.argv[2:] else None
        write_json(file, measure())
    if page is not None:
        found = json.loads(file.read_text(encoding="utf-8"))
        write_text(page, updated(page.read_text(encoding="utf-8"), found))


if __name__ == "__main__":
    main()
