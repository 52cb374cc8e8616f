"""One form of a model to infer with, wherever that happens: evaluation mode, batch norms folded.

In evaluation mode a batch norm is a scale and a shift of each channel, which the convolution before
it can apply: ``γ (W x + b - μ)/√(σ² + ε) + β`` is a convolution with other ``W`` and ``b``.
"""

import copy
import time
from collections.abc import Collection, Iterator
from itertools import pairwise
from typing import TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval
from torchvision.models.resnet import BasicBlock, Bottleneck, ResNet

from hmc_fast.devices import autocast, precision_dtype, return_free_memory
from hmc_fast.kernels.backend import check_backend_name
from hmc_fast.models import attention_blocks

PROBE_SIDE = 768
PROBE_PRODUCTS = 4
Model = TypeVar("Model", bound=nn.Module)


class PreparedModel(nn.Module):
    """What :func:`prepare` returns: images ``[B, 3, H, W]`` to what the model makes of them.

    ``model`` is the folded copy, of the class of the given model: hooks and gradients at its
    feature maps work as ever unless it is compiled.
    """

    def __init__(self, model: nn.Module, precision: str, compile: bool) -> None:
        super().__init__()
        self.model = model
        self.precision = precision
        if compile:
            model.compile(fullgraph=True, dynamic=False, options={"freezing": True})

    def forward(self, images: Tensor) -> Tensor:
        """Logits at the precision that was asked for, whatever autocast is around the call."""
        with autocast(images.device, self.precision):
            logits: Tensor = self.model(images)
        return logits


def prepare(
    model: nn.Module, *, precision: str = "fp32", compile: bool = False, backend: str | None = None
) -> PreparedModel:
    """A copy of ``model`` to infer with; the model itself stays as it is.

    Args:
        model: of the registry, or a module around one.
        precision: of :data:`hmc_fast.devices.PRECISIONS`, by autocast.
        compile: by ``torch.compile`` with parameters frozen. It takes long for each shape of images
            and pays for many films alone, so never unasked. Call the model without gradients.
        backend: of the attention, as in :func:`hmc_fast.create_model`; None for the model's.

    Raises:
        UserError: an unknown precision.
        hmc_fast.kernels.backend.UnknownBackendError: an unknown backend.
    """
    precision_dtype(precision)
    prepared = folded(model)
    if backend is not None:
        check_backend_name(backend, "backend")
        for block in attention_blocks(prepared):
            block.backend = backend
    return_free_memory()
    return PreparedModel(prepared, precision, compile)


def slower_precision(precision: str, device: torch.device) -> str | None:
    """One line where matrix products at ``precision`` are slower than in fp32 here, else None.

    Timed for some 0.1 s, on CPUs only: not every processor multiplies bf16 or fp16 faster.
    """
    if device.type != "cpu" or precision == "fp32":
        return None
    low, full = _tflops(precision_dtype(precision)), _tflops(torch.float32)
    if low >= full:
        return None
    return (
        f"matrix products run at {low:.2f} TFLOP/s in {precision} on this processor, at {full:.2f} "
        "in fp32: --precision fp32 is faster"
    )


def _tflops(dtype: torch.dtype) -> float:
    """The best of a few products of :data:`PROBE_SIDE`² matrices."""
    a, b = (torch.rand(PROBE_SIDE, PROBE_SIDE).to(dtype) for _ in range(2))
    seconds = []
    for _ in range(PROBE_PRODUCTS):
        start = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - start)
    return 2 * PROBE_SIDE**3 / min(seconds) / 1e12


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
