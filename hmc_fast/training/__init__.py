"""Training one model, and cross-validating several."""

from hmc_fast.training.config import TrainingConfig
from hmc_fast.training.cv import (
    StudySummary,
    plan_study,
    run_cross_validation,
    summarise_study,
)
from hmc_fast.training.train import TrainingJob, train

__all__ = [
    "StudySummary",
    "TrainingConfig",
    "TrainingJob",
    "plan_study",
    "run_cross_validation",
    "summarise_study",
    "train",
]
