"""A checkpoint for the commands that read one."""

from pathlib import Path

import pytest
import torch

from hmc_fast import create_model
from hmc_fast.checkpoint import CheckpointMetadata, save_checkpoint
from hmc_fast.data import Preprocessing


@pytest.fixture(scope="package")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An untrained model; nothing may change it."""
    torch.manual_seed(0)
    model = create_model("hmc_net_resnet18")
    path = tmp_path_factory.mktemp("checkpoint") / "model.safetensors"
    metadata = CheckpointMetadata(
        model.config, "malignant", ("rest", "malignant"), Preprocessing.square(64), {}, {}
    )
    save_checkpoint(path, model, metadata)
    return path
