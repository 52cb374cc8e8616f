"""The state of a training between epochs, from which an interrupted run continues."""

import io
import pickle
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.plugins import TorchCheckpointIO
from lightning.pytorch.callbacks import ModelCheckpoint

from hmc_fast.errors import UserError
from hmc_fast.files import write_atomically

RESUME_FILE = "resume.ckpt"
IDENTITY_KEY = "hmc_fast_training"


class ResumeCheckpoint(ModelCheckpoint):
    """Writes :data:`RESUME_FILE` at every epoch's end, with the training that it belongs to."""

    def __init__(self, folder: Path, identity: str) -> None:
        super().__init__(
            dirpath=folder,
            filename=Path(RESUME_FILE).stem,
            every_n_epochs=1,
            save_on_train_epoch_end=True,
            enable_version_counter=False,
        )
        self.identity = identity

    def on_save_checkpoint(
        self, trainer: pl.Trainer, pl_module: pl.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        checkpoint[IDENTITY_KEY] = self.identity


class AtomicCheckpoints(TorchCheckpointIO):
    """Writes beside the file and renames; Lightning's own way copies where /tmp is elsewhere."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: Any, storage_options: Any = None
    ) -> None:
        state = io.BytesIO()  # into a file, torch turns a full disk into an error of its own
        torch.save(checkpoint, state)
        write_atomically(Path(path), lambda temporary: temporary.write_bytes(state.getbuffer()))


def can_resume(file: Path, identity: str) -> bool:
    """Whether ``file`` holds the state of the training of ``identity``.

    False where there is none, or one that a crash cut short: the training then starts over, with
    the same result.

    Raises :class:`UserError` for the state of another training.
    """
    if not file.is_file():
        return False
    try:
        state = torch.load(file, weights_only=True, map_location="cpu")
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, pickle.UnpicklingError):
        return False
    if not isinstance(state, dict) or state.get(IDENTITY_KEY) != identity:
        raise UserError(
            f"{file}: is the state of another training; delete it to start over, or use another "
            "folder"
        )
    return True
