"""A quick training configuration."""

import pytest

from hmc_fast.training import TrainingConfig


@pytest.fixture
def config() -> TrainingConfig:
    return TrainingConfig(size=32, epochs=2, batch_size=8, learning_rate=1e-3)
