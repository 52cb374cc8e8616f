"""Batch norms folded into convolutions.

In evaluation mode a batch norm is a scale and a shift of each channel, which the convolution before
it can apply: ``γ (W x + b - μ)/√(σ² + ε) + β`` is a convolution with other ``W`` and ``b``.
"""

import copy
from collections.abc import Collection, Iterator
from itertools import pairwise
from typing import TypeVar

from torch import nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

Model = TypeVar("Model", bound=nn.Module)


def folded(model: Model, keep: Collection[str] = ()) -> Model:
    """A copy in evaluation mode whose convolutions do what their batch norms did.

    Modules keep their names; a folded batch norm passes on what it gets. Its convolution then gives
    what the batch norm gave, so name in ``keep`` the convolutions whose own output is wanted.
    """
    result = copy.deepcopy(model).eval()
    for name, module in list(result.named_modules()):
        for conv_name, norm_name in list(_pairs(module)):
            conv, norm = module.get_submodule(conv_name), module.get_submodule(norm_name)
            if f"{name}.{conv_name}".lstrip(".") not in keep and _foldable(conv, norm):
                module.set_submodule(conv_name, fuse(conv, norm))
                module.set_submodule(norm_name, nn.Identity())
    return result


def _pairs(module: nn.Module) -> Iterator[tuple[str, str]]:
    """Names of children that follow each other in any forward pass of ``module``.

    Modules whose forward pass is not known for certain have none.
    """
    if type(module) is nn.Sequential:
        yield from pairwise(name for name, _ in module.named_children())
    elif type(module) in (BasicBlock, Bottleneck) or isinstance(module, ResNet):
        for name, _ in module.named_children():
            if name.startswith("conv"):
                yield name, name.replace("conv", "bn")


def _foldable(conv: nn.Module, norm: nn.Module) -> bool:
    """Whether ``norm`` has statistics and parameters of its own for ``conv`` to take over."""
    return (
        type(conv) is nn.Conv2d
        and type(norm) is nn.BatchNorm2d
        and norm.track_running_stats
        and norm.affine
    )


def fuse(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """A convolution that does what ``conv`` and then ``norm`` do, in evaluation mode.

    Computed in fp64 and rounded once, to the dtype of ``conv``.
    """
    exact_conv, exact_norm = copy.deepcopy(conv).eval(), copy.deepcopy(norm).eval()
    fused = fuse_conv_bn_eval(exact_conv.double(), exact_norm.double()).to(conv.weight.dtype)
    for parameter in fused.parameters():
        parameter.requires_grad_(conv.weight.requires_grad)
    return fused
