"""The baselines that HMC-Net is compared with: torchvision's VGG and ViT with a head of our width.

Parameter names are torchvision's, and with equal parameters so are the logits.
"""

from collections import OrderedDict

import torch
from torch import Tensor, nn
from torchvision.models.vgg import VGG, cfgs, make_layers
from torchvision.models.vision_transformer import VisionTransformer

from hmc_fast.errors import UserError

VGG_LAYERS = {"vgg16": "D", "vgg19": "E"}
"""Configurations of Simonyan & Zisserman (2015), by their letters."""
VIT_PATCH_SIZE = 16
STRIDE = 32
LARGEST_VIT_IMAGE = 4096
"""Its position embeddings take 200 MB; a damaged checkpoint could ask for terabytes."""


class VGGClassifier(VGG):  # type: ignore[misc]  # torchvision ships no types
    """VGG16 or VGG19 without batch normalisation, for any height and width that 32 divides.

    Args:
        trunk: ``"vgg16"`` or ``"vgg19"``.
        num_classes: width of the output.
        dropout: probability in each of the classifier's two hidden layers.
    """

    def __init__(self, trunk: str, num_classes: int = 2, dropout: float = 0.0) -> None:
        super().__init__(make_layers(cfgs[VGG_LAYERS[trunk]]), num_classes, dropout=dropout)
        self.to(memory_format=torch.channels_last)

    def forward(self, x: Tensor) -> Tensor:
        """Images ``[B, 3, H, W]``, normalised, H and W multiples of 32, to logits ``[B, classes]``.

        Raises ``ValueError`` for a size that is not a multiple of 32.
        """
        if not torch.compiler.is_compiling() and (x.shape[-2] % STRIDE or x.shape[-1] % STRIDE):
            raise ValueError(
                f"image size {x.shape[-2]}x{x.shape[-1]}: both sides must be multiples of {STRIDE}"
            )
        logits: Tensor = super().forward(x.contiguous(memory_format=torch.channels_last))
        return logits


class ViTClassifier(VisionTransformer):  # type: ignore[misc]  # torchvision ships no types
    """ViT-B/16 (Dosovitskiy et al. 2021) for square images of one size.

    Args:
        num_classes: width of the output.
        image_size: side of the images; decides the number of position embeddings.
        dropout: probability before the classifier (the encoder itself has none).
    """

    def __init__(self, num_classes: int = 2, image_size: int = 224, dropout: float = 0.0) -> None:
        if image_size < STRIDE or image_size % STRIDE:
            raise UserError(f"vit_b_16: image size {image_size} is not a multiple of {STRIDE}")
        if image_size > LARGEST_VIT_IMAGE:
            raise UserError(f"vit_b_16: image size {image_size} is above {LARGEST_VIT_IMAGE}")
        super().__init__(
            image_size=image_size,
            patch_size=VIT_PATCH_SIZE,
            num_layers=12,
            num_heads=12,
            hidden_dim=768,
            mlp_dim=3072,
            num_classes=num_classes,
        )
        self.heads = nn.Sequential(
            OrderedDict(dropout=nn.Dropout(dropout), head=self.get_submodule("heads.head"))
        )

    def forward(self, x: Tensor) -> Tensor:
        """Images ``[B, 3, S, S]``, normalised, of the size that it is built for, to logits.

        Raises :class:`UserError` for any other size.
        """
        if not torch.compiler.is_compiling() and x.shape[-2:] != (self.image_size,) * 2:
            raise UserError(
                f"vit_b_16 is built for {self.image_size}x{self.image_size} images, got "
                f"{x.shape[-2]}x{x.shape[-1]}; its position embeddings fit one size only"
            )
        logits: Tensor = super().forward(x)
        return logits
