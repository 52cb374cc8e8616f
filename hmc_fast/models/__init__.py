"""HMC-Net, its ablations and their building blocks."""

from hmc_fast.models.blocks import HierarchicalSelfAttention, MultiScaleCrossAttention
from hmc_fast.models.hmc_net import HMCNet
from hmc_fast.models.registry import MODEL_NAMES, ModelConfig, build_model, create_model

__all__ = [
    "MODEL_NAMES",
    "HMCNet",
    "HierarchicalSelfAttention",
    "ModelConfig",
    "MultiScaleCrossAttention",
    "build_model",
    "create_model",
]
