"""What users hold on to: parameter names, ONNX graphs, options and exit codes, files of old runs.

``python tests/test_golden.py`` writes the descriptions anew; a difference belongs in the changelog.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import typer
from safetensors.torch import save_file

from hmc_fast import create_model
from hmc_fast.bench.record import read_record
from hmc_fast.checkpoint import load_model
from hmc_fast.cli.app import application, run
from hmc_fast.export import export_onnx
from hmc_fast.models import MODEL_NAMES
from hmc_fast.study import read_study

GOLDEN = Path(__file__).parent / "golden"
RESULTS = Path(__file__).parents[1] / "bench" / "results"
IMAGE_SIZE = 32


def parameters() -> dict[str, Any]:
    """Names and shapes of every model's state dict."""
    with torch.device("meta"):
        return {
            name: {
                k: "×".join(map(str, v.shape)) for k, v in create_model(name).state_dict().items()
            }
            for name in MODEL_NAMES
        }


def seeded_checkpoint(folder: Path) -> Path:
    """An HMC-Net on ResNet18 with drawn parameters, under the metadata of an old training."""
    model = create_model("hmc_net_resnet18")
    generator = torch.Generator().manual_seed(0)
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            fan_in = max(1, value[0].numel())
            drawn = torch.randn(value.shape, generator=generator) / fan_in**0.5
            value.copy_(drawn.abs() + 0.5 if name.endswith("running_var") else drawn)
    metadata = (GOLDEN / "checkpoint.json").read_text(encoding="utf-8")
    path = folder / "model.safetensors"
    save_file(
        {k: v.contiguous() for k, v in model.state_dict().items()},
        path,
        metadata={"hmc_fast": metadata},
    )
    return path


def onnx_graph(folder: Path) -> dict[str, Any]:
    """Inputs, outputs and logits of the seeded model's graph."""
    import onnxruntime

    path = folder / "model.onnx"
    export_onnx(seeded_checkpoint(folder), path)
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    images = np.random.default_rng(0).standard_normal((2, 3, IMAGE_SIZE, IMAGE_SIZE))
    (logits,) = session.run(None, {session.get_inputs()[0].name: images.astype(np.float32)})
    return {
        "inputs": [[i.name, i.type, i.shape] for i in session.get_inputs()],
        "outputs": [[o.name, o.type, o.shape] for o in session.get_outputs()],
        "logits": logits.tolist(),
    }


def options() -> dict[str, Any]:
    """Every command's options and arguments, and whether they are needed."""
    described = {}

    def walk(group: Any, words: list[str]) -> None:
        for name, command in sorted(group.commands.items()):
            path = [*words, name]
            described[" ".join(path)] = {
                " ".join([*p.opts, *p.secondary_opts]): "needed" if p.required else "optional"
                for p in command.params
                if p.name != "help"
            }
            if hasattr(command, "commands"):
                walk(command, path)

    walk(typer.main.get_command(application()), [])
    return described


CALLS = (
    ["--version"],
    ["--help"],
    ["nothing"],
    ["cv"],
    ["cv", "--epochs", "many"],
    ["bench", "--nope"],
    ["bench", "--preset", "huge", "--out", "{tmp}/b"],
    ["bench", "report", "{tmp}/missing.jsonl"],
    ["predict", "{tmp}/x.pgm", "--checkpoint", "{tmp}/missing"],
    ["train", "--data", "{tmp}/missing", "--out", "{tmp}/t"],
    ["study", "report", "{tmp}/missing"],
    ["doctor", "--json"],
)


def exit_codes(folder: Path) -> dict[str, int]:
    """Exit codes of right and wrong calls."""
    return {
        " ".join(words): run([word.replace("{tmp}", str(folder)) for word in words])
        for words in CALLS
    }


def load(name: str) -> Any:
    return json.loads((GOLDEN / name).read_text(encoding="utf-8"))


def test_parameter_names() -> None:
    assert parameters() == load("parameters.json")


def test_onnx_graph_of_an_old_checkpoint(tmp_path: Path) -> None:
    graph, expected = onnx_graph(tmp_path), load("onnx.json")
    assert graph["inputs"] == expected["inputs"]
    assert graph["outputs"] == expected["outputs"]
    np.testing.assert_allclose(graph["logits"], expected["logits"], rtol=1e-4, atol=1e-5)


def test_an_old_checkpoint_is_loaded(tmp_path: Path) -> None:
    expected = load("checkpoint.json")
    expected["bilateral"] = False
    expected["preprocessing"] |= {"native": False, "clahe": False}
    expected["model"]["lesion_head"] = False
    expected["training_patients"] = {"salt": "", "keys": []}
    expected["operating_point"] = None
    assert load_model(seeded_checkpoint(tmp_path)).metadata.to_json() == expected


def test_options_of_every_command() -> None:
    assert options() == load("options.json")


def test_exit_codes(tmp_path: Path) -> None:
    assert exit_codes(tmp_path) == load("exit_codes.json")


@pytest.mark.parametrize("path", sorted(RESULTS.glob("mias-hmc_net-*.jsonl")), ids=lambda p: p.name)
def test_committed_bench_records_are_read(path: Path) -> None:
    record = read_record(path)
    assert record.measurements
    assert not record.problems
    assert all(row.p50_ms for row in record.measurements if row.status == "ok")


def test_an_old_profiling_record_is_read() -> None:
    record = read_record(GOLDEN / "profile.jsonl")
    assert not record.problems
    assert {row.case.split("@")[0] for row in record.measurements} == {"hsa_c5", "resnet50"}
    assert all(row.p50_ms for row in record.measurements if row.status == "ok")


@pytest.mark.parametrize(
    "path", [GOLDEN / "study", *sorted((RESULTS / "study").glob("*.jsonl"))], ids=lambda p: p.name
)
def test_old_studies_are_read(path: Path) -> None:
    study = read_study(path)
    assert study.jobs
    assert all(len(job.predictions.films) for job in study.jobs)


def rewrite() -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        documents = {
            "parameters.json": parameters(),
            "onnx.json": onnx_graph(folder),
            "options.json": options(),
            "exit_codes.json": exit_codes(folder),
        }
    for file, document in documents.items():
        (GOLDEN / file).write_text(
            json.dumps(document, indent=1, ensure_ascii=False) + "\n", encoding="utf-8"
        )


if __name__ == "__main__":
    rewrite()
