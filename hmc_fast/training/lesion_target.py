"""The lesion circle as an auxiliary target of a model's attention.

The class activation map (Zhou et al. 2016) of a film's own class, as a softmax over positions, is
asked to lie within the circles: the loss is the negative log of its share there.
"""

from torch import Tensor
from torch.nn.functional import adaptive_avg_pool2d

SMALLEST_SHARE = 1e-6
"""Keeps the logarithm finite; far below the share of one position of a large map."""


def lesion_loss(features: Tensor, classifier: Tensor, labels: Tensor, lesions: Tensor) -> Tensor:
    """Mean over the films with a lesion; 0 where the batch has none.

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
