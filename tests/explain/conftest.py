"""Small models and films whose lesions are known."""

from pathlib import Path

import pytest
import torch

from hmc_fast import create_model, load_model
from hmc_fast.checkpoint import CheckpointMetadata, LoadedModel, save_checkpoint
from hmc_fast.data import Preprocessing
from hmc_fast.models import FilmModel

SIZE = 96


def lively(model: FilmModel, seed: int = 0) -> FilmModel:
    """Open gates and heads that torchvision starts at zero, so that every part counts."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("gamma") or name.startswith("heads."):
                parameter.copy_(0.3 * torch.randn(parameter.shape, generator=generator))
    return model.eval()


def saved(path: Path, model: FilmModel, size: int) -> Path:
    """The model as a checkpoint that has seen no film."""
    metadata = CheckpointMetadata(
        model.config, "malignant", ("rest", "malignant"), Preprocessing.square(size), {}, {}
    )
    save_checkpoint(path, model, metadata)
    return path


@pytest.fixture(scope="session")
def model() -> FilmModel:
    torch.manual_seed(0)
    return lively(create_model("hmc_net_resnet18"))


@pytest.fixture(scope="session")
def checkpoint(model: FilmModel, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return saved(tmp_path_factory.mktemp("checkpoint") / "model.safetensors", model, SIZE)


@pytest.fixture(scope="session")
def loaded(checkpoint: Path) -> LoadedModel:
    return load_model(checkpoint)
