"""Schedules, the learning curve while it is drawn, loggers, and resuming to the same result."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import ModuleType
from typing import Any

import lightning.pytorch as pl
import pytest

from hmc_fast.cli.app import run
from hmc_fast.data import Film
from hmc_fast.errors import UserError
from hmc_fast.study import run_cross_validation
from hmc_fast.training import TrainingConfig
from hmc_fast.training.lightning import FilmClassifier, LearningCurve
from hmc_fast.training.loggers import make_loggers
from hmc_fast.training.train import HISTORY_FILE, MODEL_FILE, RESUME_FILE


def rates(epochs: int, **settings: Any) -> list[float]:
    config = TrainingConfig(learning_rate=1.0, epochs=epochs, **settings)
    return [config.rate_in(epoch, epochs) for epoch in range(epochs)]


def test_the_rate_follows_the_schedule_after_the_warm_up() -> None:
    assert rates(4) == pytest.approx([1, 0.8535534, 0.5, 0.1464466])
    assert rates(3, schedule="constant") == [1, 1, 1]
    assert rates(4, schedule="constant", warmup_epochs=2) == pytest.approx([1 / 3, 2 / 3, 1, 1])
    assert rates(4, warmup_epochs=2) == pytest.approx([1 / 3, 2 / 3, 1, 0.5])


def test_training_takes_the_rate_and_the_decay(
    phantoms: list[Film], config: TrainingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[tuple[float, float]] = []
    step = FilmClassifier.training_step

    def record(self: FilmClassifier, *batch: Any) -> Any:
        (group,) = self.trainer.optimizers[0].param_groups
        seen.append((group["lr"], group["weight_decay"]))
        return step(self, *batch)

    monkeypatch.setattr(FilmClassifier, "training_step", record)
    chosen = replace(config, epochs=3, warmup_epochs=1, schedule="constant", weight_decay=0.5)
    run_cross_validation(["resnet18"], chosen, phantoms, tmp_path, fold_count=2, only_jobs=[0])
    assert sorted(set(seen)) == [(5e-4, 0.5), (1e-3, 0.5)]


def test_a_warm_up_without_end_is_refused(
    phantoms: list[Film], config: TrainingConfig, tmp_path: Path
) -> None:
    for model, settings in (("resnet18", {"epochs": 2}), ("resnet18_lesions", {"head_epochs": 1})):
        chosen = replace(config, warmup_epochs=2, **settings)
        with pytest.raises(UserError, match="--warmup-epochs 2: need to be fewer than the"):
            run_cross_validation([model], chosen, phantoms, tmp_path / "a", fold_count=2)
        assert not (tmp_path / "a").exists()
    with pytest.raises(UserError, match="schedule 'step' is none of cosine, constant"):
        replace(config, schedule="step")


def interrupt_after(epochs: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Stop the training, as by Ctrl-C, in the epoch after so many."""
    begin = LearningCurve.on_train_epoch_start

    def stop(self: LearningCurve, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        begin(self, trainer, module)
        if trainer.current_epoch == epochs:
            raise KeyboardInterrupt

    monkeypatch.setattr(LearningCurve, "on_train_epoch_start", stop)


def test_a_resumed_training_ends_with_the_same_result_and_its_whole_curve(
    phantoms: list[Film],
    config: TrainingConfig,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    chosen = replace(config, epochs=4, schedule="constant", warmup_epochs=1, dropout=0.2)

    def train(out: Path) -> Path:
        run_cross_validation(
            ["resnet18"],
            chosen,
            phantoms,
            out,
            fold_count=2,
            only_jobs=[0],
            loggers=["tensorboard"],
        )
        return out / "resnet18" / "fold0"

    whole = train(tmp_path / "whole")
    with monkeypatch.context() as patch:
        interrupt_after(2, patch)
        with pytest.raises(KeyboardInterrupt):
            train(tmp_path / "cut")
    cut = tmp_path / "cut" / "resnet18" / "fold0"
    assert (cut / RESUME_FILE).is_file()
    assert len((cut / HISTORY_FILE).read_text().splitlines()) == 3  # a header and two epochs
    train(tmp_path / "cut")
    for name in (HISTORY_FILE, "predictions.csv"):
        assert (cut / name).read_bytes() == (whole / name).read_bytes()
    assert (cut / MODEL_FILE).stat().st_size == (whole / MODEL_FILE).stat().st_size
    for folder in (cut, whole):
        assert logged_epochs(folder / "tensorboard", "val_auc") == [0, 1, 2, 3]


def logged_epochs(folder: Path, tag: str) -> list[int]:
    """Epochs of which TensorBoard's files in ``folder`` have a value."""
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    files = EventAccumulator(str(folder))
    files.Reload()
    assert tag in files.Tags()["scalars"]
    steps = {event.step for event in files.Scalars(tag)}
    return sorted({round(e.value) for e in files.Scalars("epoch") if e.step in steps})


def test_an_epoch_is_a_line_where_there_is_no_terminal(
    phantom_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    settings = ["--size", "32", "--epochs", "2", "--folds", "3", "--batch-size", "24"]
    data = ["--data", str(phantom_folder), "--model", "resnet18", *settings]
    assert run(["train", *data, "--out", str(tmp_path / "run"), "--json"]) == 0
    printed = capsys.readouterr()
    history = json.loads(printed.out)["history"]
    expected = [
        f"resnet18, epoch {n} of 2: loss {row['train_loss']:.4f}, held-out loss "
        f"{row['val_loss']:.4f}, held-out AUC {row['val_auc']:.4f}"
        for n, row in enumerate(history, start=1)
    ]
    assert printed.err.replace("\n", " ").split() == " ".join(["resnet18", *expected]).split()
    assert run(["cv", *data, "--out", str(tmp_path / "study"), "--job", "1"]) == 0
    assert "epoch 2 of 2: loss " in capsys.readouterr().err


def test_a_logger_that_is_not_installed_is_one_line(
    phantom_folder: Path,
    tmp_path: Path,
    fails: Callable[..., str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("hmc_fast.training.loggers.find_spec", lambda name: None)
    out = tmp_path / "run"
    for command in ("train", "cv"):
        line = (command, "--data", phantom_folder, "--out", out, "--model", "resnet18")
        told = fails(*line, "--folds", "3", "--logger", "mlflow")
        assert "--logger mlflow: the package mlflow is not installed; pip install mlflow" in told
    assert not out.exists()


@pytest.mark.parametrize(
    ("name", "made_by", "given"),
    [
        ("wandb", "WandbLogger", {"name": "resnet18 fold 2", "project": "hmc-fast"}),
        ("mlflow", "MLFlowLogger", {"run_name": "resnet18 fold 2"}),
    ],
)
def test_other_loggers_of_lightning_get_a_run_a_fold(
    name: str,
    made_by: str,
    given: dict[str, str],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Their packages are not installed for tests: Lightning's classes are watched instead."""
    calls: list[dict[str, Any]] = []
    monkeypatch.setitem(sys.modules, name, ModuleType(name))
    monkeypatch.setattr("hmc_fast.training.loggers.find_spec", lambda package: package == name)
    monkeypatch.setattr(
        f"lightning.pytorch.loggers.{made_by}", lambda *words, **named: calls.append(named)
    )
    make_loggers([name, name], tmp_path, "resnet18", 2)
    (call,) = calls
    assert given.items() <= call.items()
