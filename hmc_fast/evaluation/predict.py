"""Logits of a model over films, the same way wherever they are needed."""

from collections.abc import Callable, Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.utils.data import DataLoader

from hmc_fast.data import FilmDataset, Preprocessing
from hmc_fast.devices import autocast
from hmc_fast.errors import UserError


def predict_logits(
    model: nn.Module | Callable[[Tensor], Tensor],
    dataset: FilmDataset,
    *,
    device: torch.device,
    precision: str = "fp32",
    batch_size: int = 8,
    on_batch: Callable[[int], object] | None = None,
) -> NDArray[np.float32]:
    """Logits ``[films, classes]`` in fp32, in evaluation mode, see :func:`film_logits`.

    ``on_batch`` is called with the number of films of each finished batch. Raises
    :class:`UserError` where a logit is not finite.
    """
    if isinstance(model, nn.Module):
        model.eval()
    parts = []
    with torch.inference_mode(), autocast(device, precision):
        for images in _batches(dataset, batch_size):
            logits = film_logits(model, images.to(device), dataset.preprocessing)
            parts.append(logits.cpu().numpy())
            if on_batch is not None:
                on_batch(len(images))
    result = np.concatenate(parts)
    if not np.isfinite(result).all():
        raise UserError(
            f"the model's output at {precision} is not finite for some films; "
            "use --precision fp32, or train again"
        )
    return result


def film_logits(
    model: nn.Module | Callable[[Tensor], Tensor], images: Tensor, preprocessing: Preprocessing
) -> Tensor:
    """Logits ``[B, classes]`` in fp32 of images ``[B, 3, H, W]``.

    Where ``preprocessing`` says so, the mean over each image and its mirror image.
    """
    logits: Tensor = model(images).float()
    if preprocessing.average_flips:
        logits = (logits + model(images.flip(-1)).float()) / 2
    return logits


def _batches(dataset: FilmDataset, batch_size: int) -> Iterator[Tensor]:
    for images, _ in DataLoader(dataset, batch_size=batch_size):
        yield images
