"""A model at the precision that its graph shall have: TensorRT is strongly typed, so the types of
the graph are the types of the engine.
"""

import copy

import torch
from torch import Tensor, nn
from torch.fx import Node

from hmc_fast.errors import UserError
from hmc_fast.inference import fuse
from hmc_fast.models.lesion_head import LesionHead


class PreciseModel(nn.Module):
    """``model`` computing in ``dtype``, with fp32 images in and fp32 logits out.

    The last linear layer and a lesion head stay in fp32, so the logits are not rounded. Batch
    normalisation is folded into the convolutions before anything is rounded to ``dtype``.

    Args:
        model: in evaluation mode; changed in place.
        dtype: fp32, fp16 or bf16.
        num_classes: width of the model's last linear layer.
        images: an example ``[B, 3, H, W]``.

    Raises:
        UserError: the model has no linear layer of that width.
    """

    def __init__(
        self, model: nn.Module, dtype: torch.dtype, num_classes: int, images: Tensor
    ) -> None:
        super().__init__()
        self.dtype = dtype
        if dtype != torch.float32:
            _fold_batch_norm(model, images)
            names = [_classifier_name(model, num_classes)]
            names += [n for n, module in model.named_modules() if isinstance(module, LesionHead)]
            exact = {name: copy.deepcopy(model.get_submodule(name)) for name in names}
            model.to(dtype)
            for name, module in exact.items():
                model.set_submodule(name, _Float(module))
        self.model = model

    def forward(self, images: Tensor) -> Tensor:
        """fp32 images ``[B, 3, H, W]`` to fp32 logits ``[B, classes]``."""
        logits: Tensor = self.model(images.to(self.dtype))
        return logits.float()


class _Float(nn.Module):
    """A module computed in fp32, whatever comes in."""

    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def forward(self, *inputs: Tensor) -> Tensor:
        logits: Tensor = self.module(*(x.float() for x in inputs))
        return logits


def _classifier_name(model: nn.Module, num_classes: int) -> str:
    names = [
        name
        for name, module in model.named_modules()
        if isinstance(module, nn.Linear) and module.out_features == num_classes
    ]
    if not names:
        raise UserError(
            f"{type(model).__name__} has no linear layer of {num_classes} outputs, whose logits "
            "could stay in fp32; export it with --precision fp32"
        )
    return str(names[-1])


def _fold_batch_norm(model: nn.Module, images: Tensor) -> None:
    """Fold every batch normalisation that follows a convolution in the data flow into it."""
    if not any(isinstance(module, nn.BatchNorm2d) for module in model.modules()):
        return
    with torch.no_grad():
        graph = torch.export.export(model, (images,), strict=False).module().graph
    for node in graph.nodes:
        if node.target != torch.ops.aten.batch_norm.default:
            continue
        convolution = node.args[0]
        if convolution.target != torch.ops.aten.conv2d.default or len(convolution.users) != 1:
            continue
        conv_name, norm_name = _owner(convolution.args[1]), _owner(node.args[1])
        conv, norm = model.get_submodule(conv_name), model.get_submodule(norm_name)
        assert isinstance(conv, nn.Conv2d)
        assert isinstance(norm, nn.BatchNorm2d)
        model.set_submodule(conv_name, fuse(conv, norm))
        model.set_submodule(norm_name, nn.Identity())


def _owner(parameter: Node) -> str:
    """Name of the module that owns the parameter of a graph node."""
    return str(parameter.target).rpartition(".")[0]
