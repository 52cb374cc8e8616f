"""Pretrained trunks: torchvision's ImageNet weights, or a safetensors file.

A file may come from a ResNet of the first kind, "v1" (He et al. 2015), which strides in the first
1×1 convolution of a bottleneck where torchvision's "v1.5" strides in the 3×3. The parameter names
and shapes are the same, so the file's metadata decides (key ``arch``).
"""

from dataclasses import dataclass
from pathlib import Path
from urllib.error import URLError

import torch
from safetensors import SafetensorError, safe_open
from torch import Tensor, nn
from torchvision.models import get_model_weights

from hmc_fast.errors import UserError

IMAGENET = "imagenet"
CLASSIFIER_PREFIX = "fc."


@dataclass(frozen=True)
class TrunkWeights:
    """Parameters by torchvision's names, without classifier, and where they came from."""

    state: dict[str, Tensor]
    source: str
    stride_in_1x1: bool


def read_trunk_weights(weights: str | Path, trunk: str) -> TrunkWeights:
    """``"imagenet"`` downloads torchvision's default weights; anything else is a safetensors path.

    Raises :class:`UserError` where the download or the file fails.
    """
    if str(weights) == IMAGENET:
        return _download(trunk)
    path = Path(weights)
    tensors, metadata = read_safetensors(path)
    state = {k: v.float() if v.is_floating_point() else v for k, v in tensors.items()}
    return TrunkWeights(
        state={k: v for k, v in state.items() if not k.startswith(CLASSIFIER_PREFIX)},
        source=path.name,
        stride_in_1x1=_is_resnet_v1(metadata),
    )


def load_trunk(model: nn.Module, weights: TrunkWeights) -> None:
    """Copy the trunk into ``model``; attention blocks and classifier keep their initial values.

    Raises :class:`UserError` where a trunk parameter is missing, left over or of another shape.
    """
    own = model.state_dict()
    expected = {name for name in own if not name.startswith(("hsa.", "msca.", CLASSIFIER_PREFIX))}
    missing = sorted(expected - weights.state.keys())
    unexpected = sorted(weights.state.keys() - expected)
    reshaped = sorted(
        name
        for name in expected & weights.state.keys()
        if own[name].shape != weights.state[name].shape
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
    model.load_state_dict(weights.state, strict=False)


def read_safetensors(path: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file, which is never unpickled.

    Raises :class:`UserError` where the file is missing, truncated or of another kind.
    """
    try:
        with safe_open(path, framework="pt") as file:
            names = file.keys()
            return {name: file.get_tensor(name) for name in names}, file.metadata() or {}
    except FileNotFoundError:
        raise UserError(f"{path}: no such file") from None
    except (SafetensorError, OSError) as error:
        raise UserError(f"{path}: {_not_safetensors(path, error)}") from None


def _not_safetensors(path: Path, error: Exception) -> str:
    if path.is_dir():
        return "is a folder, not a safetensors file"
    with path.open("rb") as file:
        start = file.read(4)
    if start[:1] == b"\x80" or start == b"PK\x03\x04":
        return (
            "is a pickled PyTorch file, which can run code when read and is refused; "
            "convert it to safetensors where you trust it"
        )
    return f"is not a complete safetensors file ({error}); write or copy it again"


def _is_resnet_v1(metadata: dict[str, str]) -> bool:
    arch = metadata.get("arch", "").lower()
    return "v1" in arch.replace(":", " ").split()


def _download(trunk: str) -> TrunkWeights:
    choice = get_model_weights(trunk).DEFAULT
    try:
        state = choice.get_state_dict(progress=True, check_hash=True, weights_only=True)
    except (URLError, OSError, RuntimeError) as error:
        raise UserError(
            f"ImageNet weights for {trunk} could not be downloaded ({error}); "
            "pass --weights FILE.safetensors, or --weights none for random ones"
        ) from None
    return TrunkWeights(
        state={
            name: tensor if isinstance(tensor, Tensor) else torch.as_tensor(tensor)
            for name, tensor in state.items()
            if not name.startswith(CLASSIFIER_PREFIX)
        },
        source=f"torchvision {choice}",
        stride_in_1x1=False,
    )
