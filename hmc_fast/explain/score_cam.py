"""Score-CAM (Wang et al., CVPR-W 2020) in batches of masked inputs, so that memory stays bounded.

pytorch-grad-cam's own class forms all masked inputs of a film at once and keeps the activations of
every forward pass: for 2048 channels at 1024² that is 26 GB and more. The scores, the weights and
hence the map are the same here.
"""

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from pytorch_grad_cam.base_cam import BaseCAM
from torch import Tensor, nn

EPSILON = 1e-8
"""Added to a channel's range before dividing by it, as pytorch-grad-cam does."""


class StreamedScoreCAM(BaseCAM):  # type: ignore[misc]  # pytorch-grad-cam ships no types
    """A map of one film: the channels' mean weighted by the class scores of the masked inputs.

    Args:
        model: the classifier.
        layer: whose channels are the masks.
        reshape: from the layer's output to ``[B, C, h, w]``, or None.
        batch_size: masked inputs a forward pass.
        channels: how many channels to score, those of largest variance first (the others get no
            weight); None for all, which is the published method.
        on_batch: called with the channels scored since the last call, and those to score in all.
    """

    def __init__(
        self,
        model: nn.Module,
        layer: nn.Module,
        reshape: Callable[[Tensor], Tensor] | None = None,
        *,
        batch_size: int = 16,
        channels: int | None = None,
        on_batch: Callable[[int, int], object] = lambda done, total: None,
    ) -> None:
        super().__init__(model, [layer], reshape, uses_gradients=False)
        self.batch_size = batch_size
        self.channels = channels
        self.on_batch = on_batch

    def get_cam_weights(
        self,
        input_tensor: Tensor,
        target_layer: nn.Module,
        targets: list[Callable[[Tensor], Tensor]],
        activations: NDArray[np.float32],
        grads: Any,
    ) -> NDArray[np.float32]:
        """Softmax over the channels of the scores, ``[1, C]``; 0 for channels left out."""
        # The hooks would keep the activations of every masked input.
        self.activations_and_grads.release()
        maps = torch.from_numpy(activations[0]).to(self.device)
        chosen = self._chosen(maps)
        scores = []
        for index in torch.split(chosen, self.batch_size):
            scores.append(self._scores(input_tensor, maps[index], targets[0]))
            self.on_batch(len(index), len(chosen))
        weights = torch.zeros(len(maps))
        weights[chosen.cpu()] = torch.cat(scores).softmax(0)
        return weights[None].numpy()

    def _chosen(self, maps: Tensor) -> Tensor:
        if self.channels is None or self.channels >= len(maps):
            return torch.arange(len(maps), device=maps.device)
        variances = maps.flatten(1).var(1, correction=0)
        return variances.argsort(descending=True, stable=True)[: self.channels].sort().values

    def _scores(self, image: Tensor, maps: Tensor, target: Callable[[Tensor], Tensor]) -> Tensor:
        """Class scores ``[n]`` of the image under each of the masks ``[n, h, w]``."""
        masks = nn.functional.interpolate(
            maps[None], image.shape[-2:], mode="bilinear", align_corners=True
        )[0]
        lowest, highest = masks.amin((1, 2), keepdim=True), masks.amax((1, 2), keepdim=True)
        masks = (masks - lowest) / (highest - lowest + EPSILON)
        outputs = self.model(image * masks[:, None])
        return torch.stack([target(output) for output in outputs]).float().cpu()
