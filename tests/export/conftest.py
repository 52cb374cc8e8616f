"""A small checkpoint whose attention matters, and its exports, made once."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from lively_models import save_lively

from hmc_fast import create_model
from hmc_fast.data import TASKS, FilmCache, Preprocessing, read_mias
from hmc_fast.export import OnnxExport, Profile, export_onnx, make_onnx
from hmc_fast.training import TrainingConfig
from hmc_fast.training.train import MODEL_FILE, TrainingJob, train

SIZE = 64


@pytest.fixture(scope="session")
def save_model() -> Callable[..., Path]:
    return save_lively


@pytest.fixture(scope="session")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("checkpoint")
    return save_lively(create_model("hmc_net_resnet18"), folder / "model.safetensors")


@pytest.fixture(scope="session")
def onnx_file(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """fp32, batches 1 to 64. Copy it before changing it."""
    path = tmp_path_factory.mktemp("onnx") / "model.onnx"
    export_onnx(checkpoint, path)
    return path


@pytest.fixture(scope="session")
def half_graph(checkpoint: Path) -> OnnxExport:
    """fp16, batches 1 to 64."""
    return make_onnx(
        checkpoint, precision="fp16", profile=Profile(1, 4, 64), engine_form="equal-widths"
    )


@pytest.fixture(scope="session")
def trained_on_films(real_data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A few steps of training on 16 real films of other patients than most of the rest."""
    task = TASKS["malignant"]
    films, labels = task.select(read_mias(real_data / "mias"))
    malignant = [i for i, label in enumerate(labels) if label == 1][:8]
    others = [i for i, label in enumerate(labels) if label == 0][:8]
    out = tmp_path_factory.mktemp("trained") / "run"
    job = TrainingJob(
        "hmc_net_resnet18",
        TrainingConfig(size=SIZE, epochs=2, batch_size=8, learning_rate=1e-3),
        films,
        labels,
        sorted([*malignant, *others]),
        [],
        -1,
        "patient",
    )
    train(job, out, FilmCache(Preprocessing.square(SIZE)))
    return out / MODEL_FILE
