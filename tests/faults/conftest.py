"""Inputs of all jobs, machines to run them on, and what an undisturbed run of each leaves."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from lively_models import save_lively
from machine import PAGE, Machine, machine
from safetensors.torch import save_file
from writing_commands import Job, Undisturbed, essence, tree

from hmc_fast import create_model
from hmc_fast.data import write_phantoms
from hmc_fast.export import export_onnx

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="session")
def inputs(tmp_path_factory: pytest.TempPathFactory, phantom_folder: Path) -> dict[str, Path]:
    """What the lines of the jobs name; nothing may change them."""
    folder = tmp_path_factory.mktemp("inputs")
    for seed, name in enumerate(("model", "second")):
        torch.manual_seed(seed)
        save_lively(create_model("hmc_net_resnet18"), folder / f"{name}.safetensors")
    export_onnx(folder / "model.safetensors", folder / "model.onnx")
    write_phantoms(folder / "large", patients=12, size=256, seed=3)
    state = create_model("resnet18").state_dict()
    trunk = {name: tensor.contiguous() for name, tensor in state.items()}
    save_file(trunk, folder / "trunk.safetensors")
    (folder / "none.yaml").touch()
    results = ROOT / "bench" / "results"
    return {
        "data": phantom_folder,
        "large": folder / "large",
        "model": folder / "model.safetensors",
        "second": folder / "second.safetensors",
        "trunk": folder / "trunk.safetensors",
        "onnx": folder / "model.onnx",
        "none": folder / "none.yaml",
        "record": results / "cpu-kernels.jsonl",
        "profile": results / "mias-hmc_net_lesions-512-cpu.jsonl",
        "study": ROOT / "tests" / "golden" / "study",
    }


@pytest.fixture(scope="session")
def computer() -> Iterator[Machine]:
    with machine() as made:
        yield made


@pytest.fixture(scope="session")
def undisturbed(computer: Machine, inputs: dict[str, Path]) -> Callable[[Job], Undisturbed]:
    """Runs a job once; what it left on a disk of its own is kept."""
    known: dict[str, Undisturbed] = {}

    def run(job: Job) -> Undisturbed:
        if job.line not in known:
            computer.new_disk()
            ended = computer.run(job.words(job.line, computer.disk, inputs))
            assert ended.code == 0, ended.err
            files = tree(computer.seen())
            known[job.line] = Undisturbed(
                {name: essence(name, content) for name, content in files.items()},
                sum(-(-len(content) // PAGE) for content in files.values()),
                ended.steps,
            )
        return known[job.line]

    return run
