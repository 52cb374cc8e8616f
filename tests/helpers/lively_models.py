"""Untrained checkpoints of models in which every part counts."""

from pathlib import Path

import torch
from torch import nn

from hmc_fast.checkpoint import CheckpointMetadata, save_checkpoint
from hmc_fast.data import Preprocessing
from hmc_fast.models import FilmModel


def save_lively(model: FilmModel, path: Path, size: int | tuple[int, int] = 64) -> Path:
    """The model with its attention switched on and lifelike batch norms, as a checkpoint."""
    torch.manual_seed(1)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("gamma"):
                parameter.normal_(std=0.5)
        for module in model.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.normal_(std=0.2)  # type: ignore[union-attr]  # it has one
                module.running_var.uniform_(0.5, 2.0)  # type: ignore[union-attr]  # as above
    metadata = CheckpointMetadata(
        model.config,
        "malignant",
        ("rest", "malignant"),
        Preprocessing(*(size if isinstance(size, tuple) else (size, size))),
        {},
        {},
    )
    save_checkpoint(path, model, metadata)
    return path
