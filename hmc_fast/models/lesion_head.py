"""Lesion maps from a trunk's features, and the film's logit that they give.

A 1×1 convolution over C3 (2×2 average and 2×2 maximum) and C4 says for every cell of 16×16 pixels
whether it lies in a malignant lesion, in any lesion, and in calcifications. Fitted to the lesions'
circles (:mod:`hmc_fast.training.lesion_fit`) it finds cancers that labels of whole films do not
teach.
"""

import math
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.functional import avg_pool2d, conv2d, max_pool2d, pad

LESION_MAPS = ("malignant", "any lesion", "calcification")
"""What the head's maps show, in their order."""
COUNTED_MAPS = 2
"""So many of them, the first ones, make a film's score."""
CELL = 16
"""Pixels of the image a side of a cell of the lesion maps: C4's stride."""
SMOOTHING = 1.5
"""Standard deviation, in cells, of the Gaussian that the malignant map is smoothed with."""
NOTHING_BLACK = -65504.0
"""Below any normalised pixel, and a number of half precision too."""
LEAST_GREY = 1 / 1024
"""In 0…1: darker pixels are taken for the black ground, whatever the rounding."""
TOP_CELLS = 10
"""Cells that the readout ``top_cells`` averages."""


def _largest(maps: Tensor, breast: Tensor) -> Tensor:
    return maps.masked_fill(~breast, -math.inf).amax((2, 3))


def _mean(maps: Tensor, breast: Tensor) -> Tensor:
    return (maps * breast).sum((2, 3)) / breast.sum((2, 3))


def _top(maps: Tensor, breast: Tensor) -> Tensor:
    """The mean of the largest cells, or of all where the breast has fewer."""
    cells = maps.masked_fill(~breast, -math.inf).flatten(2)
    top = cells.topk(min(TOP_CELLS, cells.shape[2]), 2).values
    there = top > -math.inf
    return top.masked_fill(~there, 0).sum(2) / there.sum(2)


READOUTS: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
    "maximum": _largest,
    "top_cells": _top,
    "mean": _mean,
}
"""What becomes of maps ``[B, maps, h, w]`` over the breast's cells ``[B, 1, h, w]``: ``[B, maps]``.

The first is the default."""


class LesionHead(nn.Module):
    """Lesion maps of a film from features C3 and C4, and the film's logits from the maps.

    The logits are those of the network that it stands in, by a learned weight, and the lesions'
    margin. The weight starts at zero, so that a fitted head decides alone until training shows that
    the network with its attention adds to it. Both read the same features, which are the trunk's
    own while the attention blocks' γ is zero.

    Args:
        c3_channels: channels of C3, at stride 8.
        c4_channels: channels of C4, at stride 16.
        readout: one of :data:`READOUTS`.

    Buffers: ``black`` is the largest value of an image's first channel that counts as black (every
    pixel is the breast's before the head is fitted); ``slope`` and ``offset`` turn the readout into
    the margin.
    """

    smoothing: Tensor
    black: Tensor
    slope: Tensor
    offset: Tensor

    def __init__(self, c3_channels: int, c4_channels: int, readout: str = "maximum") -> None:
        super().__init__()
        self.readout = readout
        self.c4_channels = c4_channels
        self.maps = nn.Conv2d(2 * c3_channels + c4_channels, len(LESION_MAPS), 1)
        self.net_weight = nn.Parameter(torch.zeros(()))
        self.register_buffer("black", torch.tensor(NOTHING_BLACK))
        self.register_buffer("slope", torch.ones(()))
        self.register_buffer("offset", torch.zeros(()))
        self.register_buffer("smoothing", gaussian(SMOOTHING), persistent=False)

    def forward(self, x: Tensor, c3: Tensor, c4: Tensor, whole: Tensor) -> Tensor:
        """Logits ``[B, 2]``.

        Args:
            x: normalised images ``[B, 3, H, W]``, black outside the breast.
            c3: their features ``[B, C, H/8, W/8]``.
            c4: their features ``[B, C', H/16, W/16]``.
            whole: the network's own logits ``[B, 2]``.
        """
        margin = self.margin(self.lesion_maps(c3, c4), breast_cells(x, self.black))
        return self.net_weight * whole + torch.stack([-margin / 2, margin / 2], 1)

    def lesion_maps(self, c3: Tensor, c4: Tensor) -> Tensor:
        """Lesion maps ``[B, 3, h, w]`` of C3 ``[B, C, 2h, 2w]`` and C4 ``[B, C', h, w]``."""
        maps: Tensor = self.maps(lesion_features(c3, c4))
        return maps

    def margin(self, maps: Tensor, breast: Tensor) -> Tensor:
        """``[B]``: how much the maps speak for class 1, as a difference of logits.

        Args:
            maps: ``[B, 3, h, w]``.
            breast: ``[B, 1, h, w]``, bool, see :func:`breast_cells`.
        """
        return self.slope * self.score(maps, breast) + self.offset

    def score(
        self, maps: Tensor, breast: Tensor, readout: str | None = None, counted: int = COUNTED_MAPS
    ) -> Tensor:
        """``[B]``: the readout of the smoothed malignant map plus that of the any-lesion map.

        ``readout`` is one of :data:`READOUTS`; the head's own by default. ``counted`` are the maps
        that the score is the sum of, the first of :data:`LESION_MAPS`.
        """
        malignant = smooth(maps[:, :1], self.smoothing.to(maps.dtype))
        read = torch.cat([malignant, maps[:, 1:counted]], 1)
        return READOUTS[readout or self.readout](read, breast).sum(1)


def lesion_features(c3: Tensor, c4: Tensor) -> Tensor:
    """``[B, 2 C + C', h, w]``: 2×2 average and 2×2 maximum of C3, then C4."""
    return torch.cat([avg_pool2d(c3, 2), max_pool2d(c3, 2), c4], 1)


def breast_cells(x: Tensor, black: Tensor | float) -> Tensor:
    """Cells ``[B, 1, H/16, W/16]``, bool, at least half of whose pixels show the breast.

    The whole of an image that has no such cell.

    Args:
        x: normalised images ``[B, 3, H, W]``, black outside the breast.
        black: see :func:`black_level`.
    """
    share = avg_pool2d((x[:, :1] > black).to(x.dtype), CELL)
    inside = share >= 0.5
    return inside | (inside.to(x.dtype).amax((2, 3), keepdim=True) == 0)


def black_level(mean: float, std: float) -> float:
    """The largest value of the first channel that counts as black, by its ``mean`` and ``std``."""
    return (LEAST_GREY - mean) / std


def gaussian(sigma: float) -> Tensor:
    """A normalised one-dimensional Gaussian, cut off at four standard deviations."""
    reach = math.ceil(4 * sigma)
    places = torch.arange(-reach, reach + 1, dtype=torch.float32)
    weights = torch.exp(-0.5 * (places / sigma) ** 2)
    return weights / weights.sum()


def smooth(maps: Tensor, kernel: Tensor) -> Tensor:
    """Maps ``[B, 1, h, w]`` filtered along both axes; borders are continued outwards."""
    reach = kernel.shape[0] // 2
    padded = pad(maps, (reach, reach, reach, reach), mode="replicate")
    return conv2d(conv2d(padded, kernel.view(1, 1, -1, 1)), kernel.view(1, 1, 1, -1))
