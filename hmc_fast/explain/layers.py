"""Which feature map a class activation map is made from."""

import difflib
import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
from torch import Tensor, nn

from hmc_fast.errors import UserError
from hmc_fast.models import FilmModel, ModelConfig, build_model, model_entry

PROBE_SIZE = 64
"""Image side at which the modules' outputs are looked at, on PyTorch's meta device."""


@dataclass(frozen=True)
class TargetLayer:
    """A module with a spatial output, and how that becomes ``[B, C, h, w]`` (None: it is)."""

    name: str
    module: nn.Module
    reshape: Callable[[Tensor], Tensor] | None


def target_layer(model: FilmModel, name: str | None = None) -> TargetLayer:
    """The named module, or the default one: the last feature map before the pooling.

    That is the fused C5 (``msca``), C5 after its attention (``hsa.C5``) or ``layer4`` in the
    ResNets, the last convolution's ReLU in VGG (as in the Grad-CAM paper), and the normalised
    input of the last attention in ViT, after which patches no longer reach the class token.

    Raises :class:`UserError` for a name that is no module with a spatial output; it lists those
    that are.
    """
    name = default_layer_name(model) if name is None else name
    shapes = spatial_layers(model)
    if name not in shapes:
        raise UserError(_unknown(name, list(shapes), model))
    reshape = tokens_to_map if shapes[name] == 3 else None
    return TargetLayer(name, model.get_submodule(name), reshape)


def default_layer_name(model: FilmModel) -> str:
    """The layer that :func:`target_layer` takes by default."""
    return model_entry(model.config.name).cam_layer(model)


def spatial_layers(model: FilmModel) -> dict[str, int]:
    """Names of the modules whose output is a feature map, with the output's dimensions.

    4 is ``[B, C, h, w]`` with more than one pixel, 3 is ViT's ``[B, 1 + h·w, C]``. Nothing is
    computed: a twin of the model runs on the meta device.
    """
    return dict(_spatial_layers(model.config))


def tokens_to_map(tokens: Tensor) -> Tensor:
    """ViT's ``[B, 1 + h·w, C]`` as ``[B, C, h, w]``, without the class token."""
    side = math.isqrt(tokens.shape[1] - 1)
    patches = tokens[:, 1:].transpose(1, 2)
    return patches.reshape(*patches.shape[:2], side, side)


@cache
def _spatial_layers(config: ModelConfig) -> dict[str, int]:
    size = config.image_size or PROBE_SIZE
    dimensions: dict[str, int] = {}
    with torch.device("meta"), torch.no_grad():
        twin = build_model(config, "reference").eval()
        tokens = twin.seq_length if model_entry(config.name).token_maps else None
        for name, module in twin.named_modules():
            if name:
                module.register_forward_hook(_recorder(name, tokens, dimensions))
        twin(torch.empty(1, 3, size, size))
    return {name: dimensions[name] for name, _ in twin.named_modules() if name in dimensions}


def _recorder(
    name: str, tokens: int | None, dimensions: dict[str, int]
) -> Callable[[nn.Module, object, object], None]:
    def record(module: nn.Module, inputs: object, output: object) -> None:
        if not isinstance(output, Tensor):
            return
        is_map = output.dim() == 4 and output.shape[-2] * output.shape[-1] > 1
        if is_map or (output.dim() == 3 and output.shape[1] == tokens):
            dimensions[name] = output.dim()

    return record


def _unknown(name: str, valid: list[str], model: FilmModel) -> str:
    depth = 2 if model_entry(model.config.name).token_maps else 1
    coarse = [layer for layer in valid if layer.count(".") <= depth]
    close = difflib.get_close_matches(name, valid, n=1)
    hint = f" (did you mean {close[0]}?)" if close else ""
    return (
        f"layer {name!r} is no feature map of {model.config.name}{hint}; choose one of "
        f"{', '.join(coarse)}, or a module inside them with a spatial output"
    )
