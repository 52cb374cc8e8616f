"""The Lightning side of training: module, data and callbacks.

Everything random is seeded anew in every epoch from (seed, fold, epoch), so a run that resumes at
an epoch's end continues exactly as one that was never interrupted.
"""

import math
from collections.abc import Callable, Iterator
from typing import Any

import lightning.pytorch as pl
import torch
from torch import Tensor, nn
from torch.nn.functional import adaptive_avg_pool2d
from torch.utils.data import DataLoader, Sampler
from torchmetrics.classification import MulticlassAUROC

from hmc_fast.data import Film, FilmCache, FilmDataset
from hmc_fast.data.dataset import CropDataset, LesionDataset, derive_seed
from hmc_fast.errors import UserError
from hmc_fast.models import FilmModel, HMCNet
from hmc_fast.training.config import TrainingConfig

_ORDER, _AUGMENTATION, _DROPOUT = range(3)
SMALLEST_SHARE = 1e-6
"""Keeps the logarithm finite; far below the share of one position of a large map."""


class FilmClassifier(pl.LightningModule):
    """Cross-entropy with AdamW and the learning rate of :meth:`TrainingConfig.rate_in`.

    Batches with lesion masks add :func:`lesion_loss`. With a lesion head the trunk, statistics of
    its batch normalisation included, and the head's maps, whose fit has no better place to go, are
    frozen unless the settings say otherwise.
    """

    def __init__(
        self, model: FilmModel, config: TrainingConfig, fold: int, class_weights: Tensor | None
    ) -> None:
        super().__init__()
        self.model = model
        self.config = config
        self.fold = fold
        self.loss = nn.CrossEntropyLoss(class_weights)
        self.val_auc = MulticlassAUROC(model.config.num_classes)
        self.frozen: list[nn.Module] = []
        if isinstance(model, HMCNet) and model.lesion_head is not None and not config.train_trunk:
            self.frozen = [*model.trunk_modules(), model.lesion_head.maps]
            for module in self.frozen:
                module.requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.model(images)
        return logits

    def on_train_epoch_start(self) -> None:
        torch.manual_seed(derive_seed(self.config.seed, self.fold, self.current_epoch, _DROPOUT))
        # Computed, not stepped: Lightning saves an epoch's checkpoint before it steps a scheduler.
        epochs = self.config.epochs_of(self.model.config.name)
        rate = self.config.rate_in(self.current_epoch, epochs)
        for group in self.trainer.optimizers[0].param_groups:
            group["lr"] = rate
        for module in self.frozen:
            module.eval()

    def training_step(self, batch: tuple[Tensor, ...], batch_index: int) -> Tensor:
        images, labels, *lesions = batch
        if lesions:
            assert isinstance(self.model, HMCNet)
            features = self.model.fuse(self.model.stages(images))
            loss: Tensor = self.loss(self.model.classify(features).float(), labels)
            auxiliary = lesion_loss(features, self.model.fc.weight, labels, lesions[0])
            loss = loss + self.config.lesion_weight * auxiliary
        else:
            loss = self.loss(self(images).float(), labels)
        if not math.isfinite(loss.item()):
            raise UserError(
                f"the loss became {loss.item()} in epoch {self.current_epoch}, step {batch_index}; "
                "lower --learning-rate or use --precision fp32"
            )
        self.log(
            "train_loss",
            loss,
            on_epoch=True,
            on_step=False,
            batch_size=len(labels),
            sync_dist=True,
        )
        return loss

    def validation_step(self, batch: tuple[Tensor, Tensor], batch_index: int) -> None:
        images, labels = batch
        logits = self(images).float()
        loss = self.loss(logits, labels)
        self.log("val_loss", loss, batch_size=len(labels), sync_dist=True)
        self.val_auc.update(logits.softmax(-1), labels)
        self.log("val_auc", self.val_auc, on_epoch=True)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(
            [parameter for parameter in self.model.parameters() if parameter.requires_grad],
            self.config.learning_rate,
            weight_decay=self.config.weight_decay,
            fused=True,
        )


def lesion_loss(features: Tensor, classifier: Tensor, labels: Tensor, lesions: Tensor) -> Tensor:
    """The lesion circle as an auxiliary target: mean over the films with a lesion, 0 without any.

    The class activation map (Zhou et al. 2016) of a film's own class, as a softmax over positions,
    is asked to lie within the circles: the loss is the negative log of its share there.

    Args:
        features: last feature map ``[B, C, h, w]``.
        classifier: weights ``[classes, C]`` of the linear layer on the pooled features.
        labels: ``[B]``.
        lesions: masks ``[B, 1, H, W]`` in 0…1.
    """
    activation = (features.float() * classifier.float()[labels, :, None, None]).sum(1).flatten(1)
    height, width = features.shape[-2:]
    target = adaptive_avg_pool2d(lesions, (height, width)).flatten(1)
    peak = target.amax(1)
    shares = (activation.softmax(1) * target).sum(1) / peak.clamp_min(SMALLEST_SHARE)
    losses = -shares.clamp_min(SMALLEST_SHARE).log()
    known = peak > 0
    return (losses * known).sum() / known.sum().clamp_min(1)


class EpochOrder(Sampler[int]):
    """A random order that is the same however often it is iterated: a resume iterates twice."""

    def __init__(self, count: int, seed: int) -> None:
        super().__init__()
        self.count = count
        self.seed = seed

    def __len__(self) -> int:
        return self.count

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed)
        yield from torch.randperm(self.count, generator=generator).tolist()


class FilmData(pl.LightningDataModule):
    """Training and validation films; the training order and augmentation are redrawn each epoch."""

    def __init__(
        self,
        train: tuple[list[Film], list[int]],
        val: tuple[list[Film], list[int]],
        cache: FilmCache,
        config: TrainingConfig,
        fold: int,
    ) -> None:
        super().__init__()
        self.train_films = train
        self.val_films = val
        self.cache = cache
        self.config = config
        self.fold = fold

    def train_dataloader(self) -> DataLoader[tuple[Tensor, int]]:
        epoch = self.trainer.current_epoch if self.trainer is not None else 0
        kind = LesionDataset if self.config.lesion_weight else FilmDataset
        if epoch < self.config.crop_epochs:
            kind = CropDataset
        seeds = (self.config.seed, self.fold, epoch)
        films, labels = self.train_films
        augmentation_seed = derive_seed(*seeds, _AUGMENTATION) if self.config.augment else None
        return DataLoader(
            kind(films, labels, self.cache, augmentation_seed),
            batch_size=self.config.batch_size,
            sampler=EpochOrder(len(films), derive_seed(*seeds, _ORDER)),
            # Keeps the loader from drawing on the global generator, which dropout uses.
            generator=torch.Generator(),
            # Batch normalisation cannot normalise over one film.
            drop_last=len(films) % self.config.batch_size == 1,
        )

    def val_dataloader(self) -> DataLoader[tuple[Tensor, int]] | list[Any]:
        films, labels = self.val_films
        if not films:
            return []
        return DataLoader(FilmDataset(films, labels, self.cache), batch_size=self.config.batch_size)


class LearningCurve(pl.Callback):
    """One row of logged values an epoch, kept across resumes; ``on_epoch`` gets all rows so far."""

    def __init__(
        self, on_epoch: Callable[[list[dict[str, float]]], object] = lambda rows: None
    ) -> None:
        self.rows: list[dict[str, float]] = []
        self.on_epoch = on_epoch

    def on_train_epoch_end(self, trainer: pl.Trainer, pl_module: pl.LightningModule) -> None:
        values = {name: float(value) for name, value in trainer.callback_metrics.items()}
        for name, value in values.items():
            if not math.isfinite(value):
                raise UserError(
                    f"{name} became {value} in epoch {trainer.current_epoch}; "
                    "lower --learning-rate or use --precision fp32"
                )
        self.rows.append({"epoch": trainer.current_epoch, **values})
        if trainer.is_global_zero:
            self.on_epoch(self.rows)

    def state_dict(self) -> dict[str, Any]:
        return {"rows": self.rows}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = list(state_dict["rows"])


class StepReporter(pl.Callback):
    """Tells how many films each step has trained on."""

    def __init__(self, on_films: Callable[[int], object]) -> None:
        self.on_films = on_films

    def on_train_batch_end(
        self,
        trainer: pl.Trainer,
        pl_module: pl.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        self.on_films(len(batch[1]))
