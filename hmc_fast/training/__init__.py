"""Training one model: its settings. :mod:`hmc_fast.training.train` does it, by Lightning."""

from hmc_fast.training.config import TrainingConfig

__all__ = ["TrainingConfig"]
