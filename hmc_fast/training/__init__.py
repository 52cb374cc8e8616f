"""Training one model."""

from hmc_fast.training.config import TrainingConfig
from hmc_fast.training.train import TrainingJob, train

__all__ = ["TrainingConfig", "TrainingJob", "train"]
