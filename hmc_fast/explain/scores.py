"""How well a map fits the annotated lesion and the model: numbers for one map."""

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr
from torch import Tensor
from torchvision.transforms.v2.functional import gaussian_blur

Map = NDArray[np.float32]
Mask = NDArray[np.bool_]

BLUR_SHARE = 11 / 224
"""Kernel of the insertion curve's blur as a share of the image side, as RISE has it at 224²."""
BLUR_SIGMA_SHARE = 5 / 224


def pointing_game(values: Map, lesion: Mask) -> float:
    """1 where the map's maximum lies in the lesion, else 0 (Zhang et al., ECCV 2016).

    Of several maxima the share inside counts. A map that is the same everywhere points nowhere: 0.

    Args:
        values: ``[H, W]``, at least 0.
        lesion: ``[H, W]``.
    """
    if values.max() == values.min():
        return 0.0
    return float(lesion[values == values.max()].mean())


def energy_in_lesion(values: Map, lesion: Mask) -> float:
    """The share of the map's sum that lies in the lesion (Wang et al. 2020); 0 for a zero map."""
    total = float(values.sum(dtype=np.float64))
    return float(values[lesion].sum(dtype=np.float64)) / total if total > 0 else 0.0


def deletion_images(image: Tensor, values: Map, background: Tensor, steps: int) -> Tensor:
    """The film with ever more of its most salient pixels gone: ``[steps + 1, C, H, W]``.

    Args:
        image: ``[C, H, W]``.
        values: the map ``[H, W]``; among equals the upper left goes first.
        background: what takes a pixel's place, broadcast to the image.
        steps: the first of the images is whole, the last all background.
    """
    return _replaced(image, background.expand_as(image), values, steps)


def insertion_images(image: Tensor, values: Map, steps: int) -> Tensor:
    """The blurred film with ever more of its most salient pixels sharp: ``[steps + 1, C, H, W]``.

    Arguments as in :func:`deletion_images`.
    """
    side = min(image.shape[-2:])
    kernel = 2 * max(1, int(side * BLUR_SHARE / 2)) + 1
    blurred = gaussian_blur(image, [kernel, kernel], [side * BLUR_SIGMA_SHARE] * 2)
    return _replaced(blurred, image, values, steps)


def area_under(curve: NDArray[np.float64]) -> float:
    """Area under a curve over the share of pixels, by trapezoids (Petsiuk et al., BMVC 2018)."""
    return float(np.trapezoid(curve, dx=1 / (len(curve) - 1)))


def rank_correlation(first: Map, second: Map) -> float | None:
    """Spearman's correlation of two maps' pixels; None where one is the same everywhere."""
    if first.max() == first.min() or second.max() == second.min():
        return None
    return float(spearmanr(first.ravel(), second.ravel()).statistic)


def _replaced(start: Tensor, end: Tensor, values: Map, steps: int) -> Tensor:
    order = torch.from_numpy(np.argsort(-values.ravel(), kind="stable").copy()).to(start.device)
    rank = torch.empty_like(order)
    rank[order] = torch.arange(len(order), device=order.device)
    rank = rank.view(start.shape[-2:])
    counts = torch.linspace(0, len(order), steps + 1).round().long().tolist()
    return torch.stack([torch.where(rank < count, end, start) for count in counts])
