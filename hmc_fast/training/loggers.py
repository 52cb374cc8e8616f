"""Where a learning curve goes besides its table: Lightning's loggers, by name."""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from lightning.pytorch import loggers
from lightning.pytorch.loggers import Logger

from hmc_fast.errors import UserError

PROJECT = "hmc-fast"
LOGGERS = {"tensorboard": "tensorboard", "wandb": "wandb", "mlflow": "mlflow"}
"""The package that each needs."""


def check_loggers(names: Sequence[str]) -> None:
    """Raises :class:`UserError` for an unknown name, or a logger whose package is missing."""
    for name in names:
        if name not in LOGGERS:
            raise UserError(f"unknown logger {name!r}; choose one of {', '.join(LOGGERS)}")
        if find_spec(LOGGERS[name]) is None:
            raise UserError(
                f"--logger {name}: the package {LOGGERS[name]} is not installed; "
                f"pip install {LOGGERS[name]}"
            )


def make_loggers(names: Sequence[str], folder: Path, model: str, fold: int) -> list[Logger]:
    """The named loggers of a training that leaves its results in ``folder``.

    TensorBoard's files lie in ``folder``. W&B and MLflow take their server from their own variables
    (``WANDB_MODE``, ``MLFLOW_TRACKING_URI``) and have a new run for each resumption.

    Raises as :func:`check_loggers`.
    """
    check_loggers(names)
    run = f"{model} fold {fold}"
    made: list[Logger] = []
    for name in dict.fromkeys(names):
        if name == "tensorboard":
            made.append(loggers.TensorBoardLogger(folder, name=name, version=""))
        elif name == "wandb":
            made.append(loggers.WandbLogger(name=run, save_dir=folder, project=PROJECT))
        else:
            made.append(loggers.MLFlowLogger(PROJECT, run_name=run))
    return made
