"""Train one model on some films, hold others out, and leave everything in one folder.

``result.json`` is written last: a folder that has it is finished. Until then ``resume.ckpt`` holds
the state at the last epoch's end, from which an interrupted run continues.
"""

import csv
import io
import json
import logging
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

import lightning.pytorch as pl
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException
from torch import Tensor

from hmc_fast.checkpoint import CheckpointMetadata, save_checkpoint
from hmc_fast.data import TASKS, Film, FilmCache, FilmDataset
from hmc_fast.data.folds import AUGMENT_FIRST
from hmc_fast.data.patients import PatientKeys
from hmc_fast.devices import default_device, device_count, freed_memory_kept
from hmc_fast.environment import environment
from hmc_fast.errors import UserError
from hmc_fast.evaluation import Predictions, predict_logits
from hmc_fast.files import make_folder, write_json, write_text
from hmc_fast.models import HMCNet, create_model, model_entry
from hmc_fast.schema import PART, read_json_as
from hmc_fast.training.config import TrainingConfig
from hmc_fast.training.interrupt import InterruptGuard
from hmc_fast.training.lesion_training import LesionFit, train_lesion_head
from hmc_fast.training.lightning import FilmClassifier, FilmData, LearningCurve, StepReporter
from hmc_fast.training.loggers import check_loggers, make_loggers
from hmc_fast.training.resume import RESUME_FILE, AtomicCheckpoints, ResumeCheckpoint, can_resume

MODEL_FILE = "model.safetensors"
PREDICTIONS_FILE = "predictions.csv"
HISTORY_FILE = "history.csv"
JOB_FILE = "job.json"
RESULT_FILE = "result.json"
FEATURES_FOLDER = "features"
_LIGHTNING_PRECISION: dict[str, Any] = {"fp32": "32-true", "bf16": "bf16-mixed", "fp16": "16-mixed"}


@dataclass(frozen=True)
class TrainingJob:
    """One training: the model's name, the settings, the films, and which of them are held out."""

    model_name: str
    config: TrainingConfig
    films: list[Film]
    labels: list[int]
    train_index: list[int]
    test_index: list[int]
    fold: int
    protocol: str

    @property
    def films_to_train(self) -> int:
        """Films that the training goes through, over all epochs and for a lesion head's fit."""
        passes = self.config.epochs_of(self.model_name)
        passes += model_entry(self.model_name).config.lesion_head
        return len(self.train_index) * passes

    def labelled(self, index: list[int]) -> tuple[list[Film], list[int]]:
        return [self.films[i] for i in index], [self.labels[i] for i in index]


def train(
    job: TrainingJob,
    folder: Path,
    cache: FilmCache,
    *,
    devices: int | str = 1,
    num_nodes: int = 1,
    features: Path | None = None,
    loggers: Sequence[str] = (),
    on_films: Callable[[int], object] = lambda count: None,
    on_epoch: Callable[[dict[str, float]], object] = lambda row: None,
) -> dict[str, Any]:
    """Run ``job`` unless ``folder`` holds its result already; return the result.

    The result has the metrics on the held-out films (None without any), the learning curve and the
    environment. ``features`` is the folder for the features that a lesion head is fitted to, by
    default inside ``folder``. The learning curve is kept as a table, :data:`HISTORY_FILE`, from the
    first epoch on; ``loggers`` of :data:`hmc_fast.training.loggers.LOGGERS` get it as well.
    ``on_films`` is told the number of films of every training step, ``on_epoch`` the curve's row of
    every epoch.

    Raises:
        UserError: the loss is not finite, a film cannot be read, the folder not written, or it
            belongs to another training: other settings, films, pixels or pretrained weights.
        KeyboardInterrupt: the user interrupted; the folder can be continued.
    """
    if isinstance(devices, int) and devices > device_count():
        # Lightning would wait for ever for processes that do not come.
        raise UserError(f"--devices {devices}: this machine has {device_count()}, GPUs or cores")
    check_job(job)
    check_loggers(loggers)
    make_folder(folder)
    identity = _identity(job, cache)
    _check_disjoint(job, identity["films"])
    _claim(folder, identity)
    if (folder / RESULT_FILE).is_file():
        (folder / RESUME_FILE).unlink(missing_ok=True)  # a kill between the two leaves it
        return read_result(folder)
    torch.manual_seed(job.config.seed)
    task = TASKS[job.config.task]
    model = create_model(
        job.model_name,
        num_classes=len(task.class_names),
        weights=job.config.weights_for(model_entry(job.model_name).config.trunk),
        dropout=job.config.dropout,
        image_size=cache.preprocessing.height,
    )
    fit = None
    if isinstance(model, HMCNet) and model.lesion_head is not None:
        films, labels = job.labelled(job.train_index)
        fit = train_lesion_head(
            model,
            films,
            labels,
            task,
            cache,
            features or folder / FEATURES_FOLDER,
            seed=job.config.seed,
            bilateral=job.config.bilateral,
            balance=job.config.balance,
            at_specificity=job.config.at_specificity,
            on_film=on_films,
        )
        if not job.config.head_epochs:
            return _conclude(job, folder, cache, model, default_device(), [], fit)
    module = FilmClassifier(model, job.config, job.fold, _class_weights(job))
    data = FilmData(
        job.labelled(job.train_index), job.labelled(job.test_index), cache, job.config, job.fold
    )

    def keep_curve(rows: list[dict[str, float]]) -> None:
        write_text(folder / HISTORY_FILE, _history_table(rows))
        on_epoch(rows[-1])

    curve, guard = LearningCurve(keep_curve), InterruptGuard()
    digest = sha256(json.dumps(identity, sort_keys=True).encode()).hexdigest()
    resumed = folder / RESUME_FILE if can_resume(folder / RESUME_FILE, digest) else None
    memory = freed_memory_kept() if default_device().type == "cpu" else nullcontext()
    with _quiet_lightning(), guard.watch(), memory:
        trainer = _make_trainer(
            max_epochs=job.config.epochs_of(job.model_name),
            accelerator="auto",
            devices=devices,
            num_nodes=num_nodes,
            precision=_LIGHTNING_PRECISION[job.config.precision],
            deterministic="warn",
            reload_dataloaders_every_n_epochs=1,
            num_sanity_val_steps=0,
            logger=make_loggers(loggers, folder, job.model_name, job.fold),
            plugins=[AtomicCheckpoints()],
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[curve, StepReporter(on_films), guard, ResumeCheckpoint(folder, digest)],
        )
        device = trainer.strategy.root_device
        _fit(trainer, module, data, folder, resumed)
    if not trainer.is_global_zero:
        return {}
    return _conclude(job, folder, cache, model, device, curve.rows, fit)


def check_job(job: TrainingJob) -> None:
    """Raises :class:`UserError` for settings that the model cannot be trained with."""
    entry = model_entry(job.model_name)
    if job.config.lesion_weight and not entry.is_resnet:
        raise UserError(
            f"model {job.model_name} has no feature map for a lesion target; use --lesion-weight 0"
        )
    if job.config.at_specificity and (not entry.config.lesion_head or job.config.head_epochs):
        raise UserError(
            "--at-specificity needs the out-of-fold scores of a fitted lesion head: a model such "
            "as hmc_net_lesions, and --head-epochs 0"
        )
    passes = job.config.epochs_of(job.model_name)
    if job.config.warmup_epochs and job.config.warmup_epochs >= passes:
        raise UserError(
            f"--warmup-epochs {job.config.warmup_epochs}: need to be fewer than the {passes} "
            f"epochs of {job.model_name}"
        )
    if not entry.config.lesion_head:
        return
    if job.config.lesion_weight or job.config.crop_epochs:
        raise UserError(
            f"model {job.model_name} learns from circles by its lesion head; use --lesion-weight 0 "
            "and --crop-epochs 0"
        )
    if any(film.rotation for film in job.films):
        raise UserError(
            f"model {job.model_name} is fitted to circles on films as they are, not on rotated "
            "copies; use one copy a film and the patient protocol"
        )
    if job.config.train_trunk and not job.config.head_epochs:
        raise UserError("--train-trunk has no effect without --head-epochs")


def _identity(job: TrainingJob, cache: FilmCache) -> dict[str, Any]:
    """All that a training's result depends on; pixels and weights by their SHA-256."""
    weights = job.config.weights_for(model_entry(job.model_name).config.trunk)
    file = Path(weights) if weights is not None and Path(weights).is_file() else None
    return {
        "model": job.model_name,
        "config": {**job.config.to_json(), "weights": job.config.weights_label()},
        "weights_sha256": sha256(file.read_bytes()).hexdigest() if file else None,
        "fold": job.fold,
        "protocol": job.protocol,
        "films": {
            side: {job.films[i].sample_id: cache.digest(job.films[i].path) for i in index}
            for side, index in (("train", job.train_index), ("test", job.test_index))
        },
    }


def _check_disjoint(job: TrainingJob, digests: dict[str, dict[str, str]]) -> None:
    """Raises :class:`UserError` where a film is trained on and tested on under two names."""
    if job.protocol == AUGMENT_FIRST:  # there to show what copies on both sides do
        return
    trained = {digest: film for film, digest in digests["train"].items()}
    for film, digest in digests["test"].items():
        if digest in trained:
            raise UserError(
                f"films {trained[digest]} and {film} have the same pixels, but one is trained on "
                "and the other held out; remove one, or give both the same patient"
            )


@dataclass(frozen=True)
class _StoredResult:
    """What of ``result.json`` is read again."""

    __pydantic_config__ = PART
    metrics: dict[str, float | None] | None
    history: list[dict[str, float]]
    environment: dict[str, Any]


def read_result(folder: Path) -> dict[str, Any]:
    """What a finished training left in its folder: metrics, history, environment and more.

    Raises :class:`UserError` where it is missing or damaged.
    """
    read_json_as(_StoredResult, folder / RESULT_FILE)
    return read_json_as(dict[str, Any], folder / RESULT_FILE)


def _claim(folder: Path, identity: dict[str, Any]) -> None:
    path = folder / JOB_FILE
    if not path.is_file():
        for name in (MODEL_FILE, PREDICTIONS_FILE, HISTORY_FILE, RESULT_FILE):
            if (folder / name).exists():
                raise UserError(
                    f"{folder / name}: is of no training that began here, and is not overwritten; "
                    "use another folder"
                )
        write_json(path, identity)
        return
    previous = read_json_as(dict[str, Any], path)
    if not isinstance(previous.get("config"), dict):
        raise UserError(f"{path}: is damaged (it has no config); use another folder")
    previous["config"] = {**TrainingConfig().to_json(), **previous["config"]}
    changed = [key for key, value in identity.items() if previous.get(key) != value]
    if changed:
        raise UserError(
            f"{folder}: belongs to a training with other {' and '.join(changed)}; use another "
            "folder, or the old settings to continue"
        )


def _make_trainer(**settings: Any) -> pl.Trainer:
    try:
        return pl.Trainer(**settings)
    except MisconfigurationException as error:
        raise UserError(f"training cannot start: {' '.join(str(error).split())}") from None


def _conclude(
    job: TrainingJob,
    folder: Path,
    cache: FilmCache,
    model: Any,
    device: torch.device,
    history: list[dict[str, float]],
    fit: LesionFit | None,
) -> dict[str, Any]:
    task = TASKS[job.config.task]
    train_films, _ = job.labelled(job.train_index)
    result: dict[str, Any] = {
        "model": job.model_name,
        "fold": job.fold,
        "protocol": job.protocol,
        "config": {**job.config.to_json(), "weights": job.config.weights_label()},
        "metrics": None,
        "history": history,
        "lesion_fit": None if fit is None else asdict(fit),
        "environment": environment(),
    }
    bilateral = fit is not None and job.config.bilateral
    digests = {film.film_id: cache.digest(film.path) for film in train_films}
    model.to(device)
    if job.test_index:
        test_films, test_labels = job.labelled(job.test_index)
        logits = predict_logits(
            model,
            FilmDataset(test_films, test_labels, cache),
            device=device,
            batch_size=job.config.batch_size,
        )
        predictions = Predictions.of(
            test_films, test_labels, job.fold, logits, task.class_names, bilateral=bilateral
        )
        predictions.save(folder / PREDICTIONS_FILE)
        result["metrics"] = predictions.metrics()
    save_checkpoint(
        folder / MODEL_FILE,
        model,
        CheckpointMetadata(
            model=model.config,
            task=task.name,
            class_names=task.class_names,
            preprocessing=cache.preprocessing,
            training_films=digests,
            training={key: result[key] for key in ("fold", "protocol", "config", "environment")},
            bilateral=bilateral,
            training_patients=PatientKeys.of(train_films, digests.values()),
            operating_point=None if fit is None else fit.operating_point,
        ),
    )
    write_text(folder / HISTORY_FILE, _history_table(history))
    write_json(folder / RESULT_FILE, result)
    (folder / RESUME_FILE).unlink(missing_ok=True)
    return result


def _fit(
    trainer: pl.Trainer,
    module: FilmClassifier,
    data: FilmData,
    folder: Path,
    resumed: Path | None,
) -> None:
    try:
        trainer.fit(module, datamodule=data, ckpt_path=resumed, weights_only=True)
    except SystemExit:
        if not trainer.interrupted:
            raise
    except OSError as error:
        raise UserError(f"{folder}: could not be written ({error.strerror or error})") from None
    if trainer.interrupted:  # Lightning turns Ctrl-C into an exit or an early return
        raise KeyboardInterrupt


def _class_weights(job: TrainingJob) -> Tensor | None:
    if not job.config.balance:
        return None
    counts = Counter(job.labels[i] for i in job.train_index)
    classes = len(TASKS[job.config.task].class_names)
    present = [c for c in range(classes) if counts[c]]
    total = sum(counts.values())
    return torch.tensor(
        [total / (len(present) * counts[c]) if counts[c] else 0.0 for c in range(classes)]
    )


def _history_table(rows: list[dict[str, float]]) -> str:
    columns = list(dict.fromkeys(column for row in rows for column in row))
    table = io.StringIO()
    writer = csv.DictWriter(table, columns, lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return table.getvalue()


@contextmanager
def _quiet_lightning() -> Iterator[None]:
    """Silence advice that does not concern a user of this package; errors still come through."""
    logger = logging.getLogger("lightning.pytorch")
    if logging.getLogger().isEnabledFor(logging.INFO):  # the user asked for it all
        yield
        return
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)
