"""HMC-Net: a ResNet with self-attention inside its stages and cross-attention between them."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from hmc_fast.errors import UserError
from hmc_fast.kernels.geometry import STRIDES
from hmc_fast.models.blocks import HierarchicalSelfAttention, MultiScaleCrossAttention
from hmc_fast.models.lesion_head import LesionHead

STAGES = ("C2", "C3", "C4", "C5")
TRUNKS: dict[str, tuple[type[BasicBlock | Bottleneck], list[int]]] = {
    "resnet18": (BasicBlock, [2, 2, 2, 2]),
    "resnet50": (Bottleneck, [3, 4, 6, 3]),
}
STRIDE = STRIDES["c5"]
"""The trunk's total stride: heights and widths must be multiples of it."""


class HMCNet(ResNet):  # type: ignore[misc]  # torchvision ships no types
    """ResNet with optional hierarchical self-attention and multi-scale cross-attention (HSA, MSCA).

    Parameter names of the trunk and the classifier are torchvision's. Without HSA and MSCA this is
    torchvision's ResNet. Feature maps between modules stay ``[B, C, H, W]``, channels-last.

    Args:
        trunk: ``"resnet18"`` or ``"resnet50"``.
        num_classes: width of the output.
        hsa_stages: stages followed by HSA, of ``C2`` to ``C5``.
        msca: fuse C3 and C4 into C5 by cross-attention.
        stride_in_1x1: ResNet v1 (He et al. 2015): a down-sampling bottleneck strides in its first
            1×1 convolution instead of its 3×3.
        dropout: probability before the classifier.
        lesion_head: add a :class:`hmc_fast.models.lesion_head.LesionHead`; two classes only.
        backend: as in :func:`hmc_fast.kernels.attention`; not part of the state dict.
    """

    def __init__(
        self,
        trunk: str = "resnet50",
        num_classes: int = 2,
        hsa_stages: Sequence[str] = ("C3", "C4", "C5"),
        msca: bool = True,
        stride_in_1x1: bool = False,
        dropout: float = 0.0,
        lesion_head: bool = False,
        backend: str = "auto",
    ) -> None:
        block, layers = TRUNKS[trunk]
        super().__init__(block, layers, num_classes=num_classes)
        channels = {stage: 64 * block.expansion * 2**i for i, stage in enumerate(STAGES)}
        self.stage_channels = channels
        unknown = sorted(set(hsa_stages) - set(STAGES))
        if unknown:
            raise UserError(f"unknown HSA stage {unknown[0]!r}; stages are {', '.join(STAGES)}")
        self.hsa = nn.ModuleDict(
            {
                stage: HierarchicalSelfAttention(channels[stage], backend)
                for stage in STAGES
                if stage in hsa_stages
            }
        )
        self.msca = (
            MultiScaleCrossAttention(channels["C5"], [channels["C3"], channels["C4"]], backend)
            if msca
            else None
        )
        self.dropout = nn.Dropout(dropout)
        if lesion_head and num_classes != 2:
            raise UserError(
                f"a lesion head tells two classes apart, not {num_classes}; use the task malignant"
            )
        self.lesion_head = LesionHead(channels["C3"], channels["C4"]) if lesion_head else None
        if stride_in_1x1:
            self._stride_in_1x1()
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``[B, 3, H, W]``, normalised, H and W multiples of 32, to logits ``[B, classes]``.

        Raises ``ValueError`` for a size that is not a multiple of 32.
        """
        stages = self.stages(x)
        return self._logits(x, stages, self.fuse(stages))

    def forward_with_scale_weights(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Logits, and how much each C5 token looked at each scale: ``[B, heads, h, w, S]``.

        The last axis (C3, C4) sums to one. Raises ``ValueError`` for a model without MSCA.
        """
        if self.msca is None:
            raise ValueError("this model has no multi-scale cross-attention, so no scale weights")
        stages = self.stages(x)
        c3, c4, c5 = stages
        fused, weights = self.msca.forward_with_weights(c5, [c3, c4])
        batch, heads, _, sources = weights.shape
        logits = self._logits(x, stages, fused)
        return logits, weights.view(batch, heads, *c5.shape[2:], sources)

    def lesion_maps(self, x: Tensor) -> Tensor:
        """Maps ``[B, 3, H/16, W/16]`` of a model with a lesion head, see ``LESION_MAPS``.

        Raises ``ValueError`` for a model without.
        """
        if self.lesion_head is None:
            raise ValueError("this model has no lesion head, so no lesion maps")
        return self.lesion_head.lesion_maps(*self.early_stages(x))

    def stages(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Feature maps C3, C4 and C5, each after its own self-attention."""
        c3, c4 = self.early_stages(x)
        return c3, c4, self._attend("C5", self.layer4(c4))

    def early_stages(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """C3 and C4 alone, as a lesion head reads them, without the work for C5."""
        if not torch.compiler.is_compiling() and (x.shape[-2] % STRIDE or x.shape[-1] % STRIDE):
            raise ValueError(
                f"image size {x.shape[-2]}x{x.shape[-1]}: both sides must be multiples of {STRIDE}"
            )
        x = x.contiguous(memory_format=torch.channels_last)
        x = self.maxpool(self.relu(self.bn1(self.conv1(x))))
        c2 = self._attend("C2", self.layer1(x))
        c3 = self._attend("C3", self.layer2(c2))
        return c3, self._attend("C4", self.layer3(c3))

    def fuse(self, stages: tuple[Tensor, Tensor, Tensor]) -> Tensor:
        """C5 after cross-attention to C3 and C4 (C5 itself in a model without MSCA)."""
        c3, c4, c5 = stages
        fused: Tensor = c5 if self.msca is None else self.msca(c5, [c3, c4])
        return fused

    def trunk_modules(self) -> list[nn.Module]:
        """Everything with parameters that is torchvision's, but for the classifier."""
        return [self.conv1, self.bn1, self.layer1, self.layer2, self.layer3, self.layer4]

    def classify(self, features: Tensor) -> Tensor:
        """Global average pool, dropout, linear: the network's logits without a lesion head's."""
        logits: Tensor = self.fc(self.dropout(self.avgpool(features).flatten(1)))
        return logits

    def _logits(self, x: Tensor, stages: tuple[Tensor, Tensor, Tensor], fused: Tensor) -> Tensor:
        logits = self.classify(fused)
        if self.lesion_head is None:
            return logits
        joined: Tensor = self.lesion_head(x, stages[0], stages[1], logits)
        return joined

    def _attend(self, stage: str, x: Tensor) -> Tensor:
        return self.hsa[stage](x) if stage in self.hsa else x

    def _stride_in_1x1(self) -> None:
        for layer in (self.layer2, self.layer3, self.layer4):
            first = layer[0]
            if isinstance(first, Bottleneck):
                first.conv1.stride, first.conv2.stride = first.conv2.stride, first.conv1.stride
