"""What an engine takes by the form of its attention, in one record: builds alone, nothing is run.

build_engines.py RECORD.json [PAGE]    builds and writes the record, then the page's table
build_engines.py --table RECORD.json PAGE    writes the table alone

Models with attention at 1024², untrained, fp16, batch 8, by the installed TensorRT for RTX, which
builds without a GPU. One engine a model, form and architecture.
"""

import sys
import tempfile
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from typing import Any

from torch.export import ExportedProgram

from hmc_fast.bench.engine_facts import facts_of
from hmc_fast.bench.report.measured import run_script
from hmc_fast.bench.trials import lifelike_model
from hmc_fast.checkpoint import CheckpointMetadata, save_checkpoint
from hmc_fast.data import Preprocessing
from hmc_fast.environment import environment
from hmc_fast.errors import UserError
from hmc_fast.export import Profile
from hmc_fast.export.attention import FORMS
from hmc_fast.export.builders import Builder, BuildRequest
from hmc_fast.export.onnx_export import OPSETS, EngineGraph, engine_graph, trace_checkpoint
from hmc_fast.progress import no_progress
from hmc_fast.reporting import DASH, between_marks, number

SIZE = 1024
PRECISION = "fp16"
BATCH = 8
FLAVOUR = "tensorrt-rtx"
MODELS = ("hmc_net", "resnet50_hsa", "resnet50_msca")
TARGETS = ("sm_86", "sm_89", "sm_120")
BEGIN, END = "<!-- engines:begin -->", "<!-- engines:end -->"


def trace(model: str) -> ExportedProgram:
    """The model at its precision, our attention still whole."""
    names = ("rest", "malignant")
    square = Preprocessing.square(SIZE)
    lively = lifelike_model(model, 224)
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "model.safetensors"
        metadata = CheckpointMetadata(lively.config, "malignant", names, square, {}, {})
        save_checkpoint(path, lively, metadata)
        profile = Profile(1, BATCH, BATCH)
        return trace_checkpoint(path, precision=PRECISION, profile=profile).program


def build(graph: EngineGraph, target: str) -> dict[str, Any]:
    """What the builder tells of one engine, or why it refuses."""
    builder = Builder(FLAVOUR)
    request = BuildRequest(Profile(1, BATCH, BATCH), (target,), None, False, False)
    start = time.perf_counter()
    try:
        built = builder.build(graph.content, request, no_progress)
    except UserError as error:
        return {"refused": str(error)}
    facts = facts_of(builder, [target], BATCH, graph, built)
    return {"engine": asdict(facts), "seconds": time.perf_counter() - start}


def rows() -> Iterator[dict[str, Any]]:
    """One for every model, form and architecture."""
    for model in MODELS:
        program = trace(model)
        for form in FORMS:
            graph = engine_graph(program, form, OPSETS[PRECISION])
            for target in TARGETS:
                row = {"model": model, "form": form, "target": target, **build(graph, target)}
                print(row, file=sys.stderr, flush=True)
                yield row


def measure() -> dict[str, Any]:
    """The record: builds, and what they were made with."""
    made_with = {**environment(), "command": "python scripts/build_engines.py"}
    return {
        "size": SIZE,
        "precision": PRECISION,
        "batch": BATCH,
        "builder": f"{FLAVOUR} {Builder(FLAVOUR).version}",
        "builds": list(rows()),
        "environment": made_with,
    }


def table(record: dict[str, Any]) -> str:
    """The record as its builder and a Markdown table, a row for each model and form."""
    targets = list(dict.fromkeys(row["target"] for row in record["builds"]))
    memory = [f"activations for {target}, GB" for target in targets]
    lines = [["model", "attention", *memory, "fused", "engine, MiB"]]
    lines.append(["---"] * len(lines[0]))
    found: dict[tuple[str, str], dict[str, dict[str, Any]]] = {}
    for row in record["builds"]:
        found.setdefault((row["model"], row["form"]), {})[row["target"]] = row
    for (model, form), by_target in found.items():
        engines = [by_target[target].get("engine") for target in targets]
        lines.append([model, form, *map(_activations, engines), *_fused_and_size(engines)])
    rendered = "\n".join(f"| {' | '.join(line)} |" for line in lines)
    return f"By {record['builder']}:\n\n{rendered}"


def _activations(engine: dict[str, Any] | None) -> str:
    if engine is None:
        return "refused"
    taken = engine["activation_bytes"]
    return number(None if taken is None else taken / 1e9, "{:.2f}")


def _fused_and_size(engines: list[dict[str, Any] | None]) -> list[str]:
    """Of all architectures together: what differs between them stands side by side."""
    built = [engine for engine in engines if engine is not None]
    fused = dict.fromkeys(f"{e['fused_attentions']} of {e['attentions']}" for e in built)
    sizes = dict.fromkeys(f"{e['engine_bytes'] / 2**20:.0f}" for e in built)
    return [", ".join(fused) or DASH, ", ".join(sizes) or DASH]


def updated(text: str, record: dict[str, Any]) -> str:
    """``text`` with the table between its marks made again."""
    return between_marks(text, BEGIN, END, table(record))


if __name__ == "__main__":
    run_script(__doc__, measure, updated)
