"""Pretrained trunks: torchvision's ImageNet weights, or a safetensors file.

A file may come from a ResNet of the first kind, "v1" (He et al. 2015), which strides in the first
1×1 convolution of a bottleneck where torchvision's "v1.5" strides in the 3×3. The parameter names
and shapes are the same, so the file's metadata decides (key ``arch``).
"""

import math
import pickle
from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError

import torch
from torch import Tensor, nn
from torchvision.models import get_model_weights
from torchvision.models.vision_transformer import interpolate_embeddings

from hmc_fast.errors import UserError
from hmc_fast.tensor_files import read_safetensors

IMAGENET = "imagenet"
_VGG_HIDDEN = "classifier."
_POSITIONS = "encoder.pos_embedding"


@dataclass(frozen=True)
class TrunkWeights:
    """Parameters by torchvision's names, without those of the layer that gives the logits.

    ``head`` is the prefix of that layer's names, ``source`` says where the parameters came from.
    """

    state: dict[str, Tensor]
    source: str
    head: str
    stride_in_1x1: bool


def read_trunk_weights(weights: str | Path, trunk: str, head: str) -> TrunkWeights:
    """``"imagenet"`` downloads torchvision's default weights; anything else is a safetensors path.

    ``head`` is the prefix of the names of the layer that gives the logits, which is left out.

    Raises :class:`UserError` where the download or the file fails.
    """
    if str(weights) == IMAGENET:
        return _download(trunk, head)
    path = Path(weights)
    tensors, metadata = read_safetensors(path)
    state = {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}
    return _without_head(state, trunk, head, path.name, metadata)


def load_trunk(model: nn.Module, weights: TrunkWeights) -> None:
    """Copy the trunk into ``model``; attention blocks and classifier keep their initial values.

    VGG's two hidden layers are copied where the weights have them. ViT's position embeddings are
    interpolated to the model's image size, as torchvision does it.

    Raises :class:`UserError` where a trunk parameter is missing, left over or of another shape.
    """
    parameters = model.state_dict()
    state = _interpolate_positions(weights, parameters)
    fresh: tuple[str, ...] = ("hsa.", "msca.", "lesion_head.", weights.head)
    if not any(name.startswith(_VGG_HIDDEN) for name in state):
        fresh = (*fresh, _VGG_HIDDEN)
    expected = {name for name in parameters if not name.startswith(fresh)}
    missing = sorted(expected - state.keys())
    unexpected = sorted(state.keys() - expected)
    reshaped = sorted(
        name for name in expected & state.keys() if parameters[name].shape != state[name].shape
    )
    for problem, names in (
        ("lacks", missing),
        ("has unexpected", unexpected),
        ("has another shape for", reshaped),
    ):
        if names:
            raise UserError(
                f"weights {weights.source}: the file {problem} {names[0]}"
                f"{f' and {len(names) - 1} more' if len(names) > 1 else ''}; "
                "it must hold the trunk of the model named"
            )
    model.load_state_dict(state, strict=False)


def _is_resnet_v1(metadata: dict[str, str]) -> bool:
    arch = metadata.get("arch", "").lower()
    return "v1" in arch.replace(":", " ").split()


def _download(trunk: str, head: str) -> TrunkWeights:
    choice = get_model_weights(trunk).DEFAULT
    try:
        state = choice.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except (URLError, OSError, RuntimeError, EOFError, pickle.UnpicklingError) as error:
        raise UserError(
            f"ImageNet weights for {trunk} could not be downloaded ({error}); "
            "pass --weights FILE.safetensors, or --weights none for random ones"
        ) from None
    tensors = {
        name: tensor if isinstance(tensor, Tensor) else torch.as_tensor(tensor)
        for name, tensor in state.items()
    }
    return _without_head(tensors, trunk, head, f"torchvision {choice}", {})


def _without_head(
    state: dict[str, Tensor], trunk: str, head: str, source: str, metadata: dict[str, str]
) -> TrunkWeights:
    return TrunkWeights(
        state={name: tensor for name, tensor in state.items() if not name.startswith(head)},
        source=source,
        head=head,
        stride_in_1x1=trunk.startswith("resnet") and _is_resnet_v1(metadata),
    )


def _interpolate_positions(
    weights: TrunkWeights, parameters: dict[str, Tensor]
) -> dict[str, Tensor]:
    """The weights with ViT's position embeddings for as many tokens as the model has."""
    if _POSITIONS not in parameters or _POSITIONS not in weights.state:
        return weights.state
    side = math.isqrt(parameters[_POSITIONS].shape[1] - 1)
    try:
        fitted: dict[str, Tensor] = interpolate_embeddings(side, 1, dict(weights.state))
    except ValueError as error:
        raise UserError(
            f"weights {weights.source}: {_POSITIONS} cannot be used ({error})"
        ) from None
    return fitted
