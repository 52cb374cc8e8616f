"""HMC-Net, its ablations, their building blocks, and the baselines."""

from hmc_fast.models.baselines import VGGClassifier, ViTClassifier
from hmc_fast.models.blocks import (
    Attend,
    HierarchicalSelfAttention,
    MultiScaleCrossAttention,
    attention_blocks,
)
from hmc_fast.models.hmc_net import HMCNet
from hmc_fast.models.registry import (
    MODEL_NAMES,
    FilmModel,
    ModelConfig,
    ModelEntry,
    build_model,
    create_model,
    model_entry,
)

__all__ = [
    "MODEL_NAMES",
    "Attend",
    "FilmModel",
    "HMCNet",
    "HierarchicalSelfAttention",
    "ModelConfig",
    "ModelEntry",
    "MultiScaleCrossAttention",
    "VGGClassifier",
    "ViTClassifier",
    "attention_blocks",
    "build_model",
    "create_model",
    "model_entry",
]
