"""Attention between a lesion head's cells, trained on circles: over one breast, or over both.

An experiment: does a cell's verdict gain from the rest of the breast, or from the other one? A
block of multi-scale cross-attention stands between the cached features C4 and a fitted head, whose
maps stay as they are. It learns from the same cells and circles as the head, with the same loss.
Cells outside the breast neither ask nor answer.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from hmc_fast.models.blocks import MultiScaleCrossAttention
from hmc_fast.models.lesion_head import LesionHead
from hmc_fast.training.features import FilmFeatures, read_features
from hmc_fast.training.lesion_fit import FilmPositions, balanced

EPOCHS = 3
LEARNING_RATE = 1e-3
"""Of AdamW, constant. Both were set before any figure was seen, and not changed after."""


def fit_attention(
    head: LesionHead,
    positions: Sequence[FilmPositions | None],
    files: Sequence[Path],
    mates: Sequence[int],
    *,
    both: bool,
    seed: int,
) -> MultiScaleCrossAttention:
    """A block whose queries are the training cells and whose tokens are the cells of the breast.

    Args:
        head: fitted to ``positions``; not changed.
        positions: of the training films, None for a film that teaches nothing.
        files: their features.
        mates: for each film the number of that of the other breast, or its own.
        both: attend to the other breast as a second source.
        seed: of the projections and the order of films.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        block = MultiScaleCrossAttention(head.c4_channels, [head.c4_channels] * (1 + both))
    usable = [index for index, film in enumerate(positions) if film is not None]
    weights = _loss_weights([film for film in positions if film is not None])
    optimizer = torch.optim.AdamW(block.parameters(), LEARNING_RATE)
    order = np.random.default_rng(seed)
    for _ in range(EPOCHS):
        for number in order.permutation(len(usable)):
            index = usable[number]
            film = positions[index]
            assert film is not None
            cells = film.cells.float().T[None, :, :, None]
            films = [index, mates[index]] if both else [index]
            sources = [_breast(block, read_features(files[film])) for film in films]
            attended = _attend(block, cells, sources)
            margins = _maps(head, attended)[0, :, :, 0].T
            signs = torch.from_numpy(np.where(film.targets, 1.0, -1.0)).float()
            loss = -(weights[number] * torch.nn.functional.logsigmoid(signs * margins)).sum()
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return block.requires_grad_(False)


def attended_features(
    block: MultiScaleCrossAttention, files: Sequence[Path], mates: Sequence[int], index: int
) -> FilmFeatures:
    """A film's features with C4 after the block. Arguments as in :func:`fit_attention`."""
    features = read_features(files[index])
    sources = [_breast(block, features)]
    if len(block.k_projs) == 2:
        sources.append(_breast(block, read_features(files[mates[index]])))
    cells, breast = features.cells.float(), features.breast
    with torch.inference_mode():
        attended = _attend(block, cells[:, breast][None, :, :, None], sources)
        cells[:, breast] = attended[0, :, :, 0]
    return replace(features, cells=cells)


def _attend(block: MultiScaleCrossAttention, cells: Tensor, sources: Sequence[Tensor]) -> Tensor:
    """Cells ``[1, C, h, w]`` whose last channels, C4, are the block's target."""
    channels = block.gamma.numel()
    c4 = block(cells[:, -channels:], sources)
    return torch.cat([cells[:, :-channels], c4], 1)


def _breast(block: MultiScaleCrossAttention, features: FilmFeatures) -> Tensor:
    """C4 ``[1, C, n, 1]`` of the breast's cells."""
    channels = block.gamma.numel()
    return features.cells[-channels:, features.breast].float()[None, :, :, None]


def _maps(head: LesionHead, cells: Tensor) -> Tensor:
    """The head's maps with its parameters as constants."""
    assert head.maps.bias is not None
    return torch.nn.functional.conv2d(cells, head.maps.weight.detach(), head.maps.bias.detach())


def _loss_weights(films: Sequence[FilmPositions]) -> list[Tensor]:
    """``[n, outputs]`` of each film, as in the head's own fit, one on average a film."""
    targets = np.concatenate([film.targets for film in films])
    weights = balanced(targets, np.concatenate([film.weights for film in films])) * len(films)
    ends = np.cumsum([len(film.targets) for film in films])[:-1]
    return [torch.from_numpy(part).float() for part in np.split(weights, ends)]
