"""The scale map: how much each query of the cross-attention attended to each scale.

It costs one forward pass and comes from the model's own union softmax: at every place of C5 the
shares of C3 (fine) and C4 (coarse) sum to one.
"""

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import interpolate

from hmc_fast.errors import UserError
from hmc_fast.explain.methods import explaining
from hmc_fast.models import FilmModel

SCALES = ("C3", "C4")
STRIDES = {"C3": 8, "C4": 16}


@dataclass(frozen=True)
class ScaleMap:
    """Shares of the attention by scale.

    Args:
        shares: ``[S, H, W]``, fp32, of the size of the model's input; they sum to one everywhere.
        film_shares: the mean share of each scale over all queries and heads.
        token_shares: the share that each scale would get by its number of tokens alone, which is
            what attention without preference gives it.
        grid: rows and columns of the queries, from which the shares were enlarged.
    """

    shares: NDArray[np.float32]
    film_shares: dict[str, float]
    token_shares: dict[str, float]
    grid: tuple[int, int]

    @property
    def fine(self) -> NDArray[np.float32]:
        """The share of the finest scale, ``[H, W]``."""
        fine: NDArray[np.float32] = self.shares[0]
        return fine


def has_scale_map(model: FilmModel) -> bool:
    """Whether the model has multi-scale cross-attention."""
    return bool(model.config.msca)


def scale_map(model: FilmModel, image: Tensor) -> ScaleMap:
    """The scale map of one film ``[3, H, W]``, normalised as the model wants it.

    Raises :class:`UserError` for a model without multi-scale cross-attention.
    """
    if not has_scale_map(model):
        raise UserError(
            f"{model.config.name} has no multi-scale cross-attention, so no scale map; "
            "hmc_net and resnet50_msca have one"
        )
    with explaining(model), torch.no_grad():
        _, weights = model.forward_with_scale_weights(image[None])
    weights = weights[0].mean(0).double()  # [h, w, S]
    means = weights.mean((0, 1)).cpu()
    shares = interpolate(weights.permute(2, 0, 1)[None], image.shape[-2:], mode="bilinear")[0]
    shares = shares / shares.sum(0)
    tokens = {scale: 1 / STRIDES[scale] ** 2 for scale in SCALES}
    return ScaleMap(
        shares=shares.float().cpu().numpy(),
        film_shares={scale: float(mean) for scale, mean in zip(SCALES, means, strict=True)},
        token_shares={scale: count / sum(tokens.values()) for scale, count in tokens.items()},
        grid=(weights.shape[0], weights.shape[1]),
    )
