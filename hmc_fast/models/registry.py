"""Models by name."""

from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hmc_fast.errors import UserError
from hmc_fast.kernels.backend import check_backend_name
from hmc_fast.models.baselines import VGG_LAYERS, VGGClassifier, ViTClassifier
from hmc_fast.models.hmc_net import HMCNet
from hmc_fast.models.weights import load_trunk, read_trunk_weights

FilmModel = HMCNet | VGGClassifier | ViTClassifier
"""Any model of :data:`MODEL_NAMES`; its :class:`ModelConfig` is ``model.config``."""

_HSA_STAGES = ("C3", "C4", "C5")
_VIT = "vit_b_16"


@dataclass(frozen=True)
class ModelConfig:
    """Everything that decides a model's parameters and what it computes.

    ``image_size`` is the side of the square images that the model is built for, or None where it
    takes any multiple of 32.
    """

    name: str
    num_classes: int = 2
    trunk: str = "resnet50"
    hsa_stages: tuple[str, ...] = ()
    msca: bool = False
    stride_in_1x1: bool = False
    dropout: float = 0.0
    image_size: int | None = None

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "hsa_stages": list(self.hsa_stages)}

    @classmethod
    def from_json(cls, values: dict[str, Any]) -> "ModelConfig":
        """Raises ``TypeError`` for keys that are missing or unknown."""
        return cls(**{**values, "hsa_stages": tuple(values["hsa_stages"])})


def _variants(trunk: str, full_name: str) -> dict[str, ModelConfig]:
    return {
        full_name: ModelConfig(full_name, trunk=trunk, hsa_stages=_HSA_STAGES, msca=True),
        f"{trunk}_hsa": ModelConfig(f"{trunk}_hsa", trunk=trunk, hsa_stages=_HSA_STAGES),
        f"{trunk}_msca": ModelConfig(f"{trunk}_msca", trunk=trunk, msca=True),
        trunk: ModelConfig(trunk, trunk=trunk),
    }


_BASELINES = {name: ModelConfig(name, trunk=name) for name in (*VGG_LAYERS, _VIT)}
_CONFIGS = _variants("resnet50", "hmc_net") | _BASELINES | _variants("resnet18", "hmc_net_resnet18")

MODEL_NAMES = tuple(_CONFIGS)
FIXED_SIZE_MODELS = (_VIT,)
"""Models that classify images of the one size they are built for."""


def trunk_of(name: str) -> str:
    """The trunk of a named model, whose pretrained weights it takes.

    Raises :class:`UserError` for an unknown name.
    """
    if name not in _CONFIGS:
        raise UserError(f"unknown model {name!r}; choose one of {', '.join(MODEL_NAMES)}")
    return _CONFIGS[name].trunk


def create_model(
    name: str,
    num_classes: int = 2,
    weights: str | Path | None = None,
    *,
    hsa_stages: tuple[str, ...] | None = None,
    dropout: float = 0.0,
    image_size: int = 224,
    backend: str = "auto",
) -> FilmModel:
    """Build a model by name.

    Args:
        name: one of :data:`MODEL_NAMES`: ``hmc_net``, ``resnet50_hsa``, ``resnet50_msca``,
            ``resnet50``, the same on a ResNet18 trunk, and the baselines ``vgg16``, ``vgg19`` and
            ``vit_b_16``.
        num_classes: number of logits.
        weights: None for random weights, ``"imagenet"`` for torchvision's, or a safetensors file
            with the trunk by torchvision's names (ResNet v1 by its metadata). ViT's position
            embeddings are interpolated to ``image_size``.
        hsa_stages: stages with self-attention where the named model has it; ``C2`` is opt-in.
        dropout: probability before the classifier (in VGG, in its two hidden layers).
        image_size: side of the images that ``vit_b_16`` is built for; the other models take any
            multiple of 32 and ignore it.
        backend: one of :data:`hmc_fast.kernels.BACKENDS`; no part of the state dict.

    Returns:
        The model, with its :class:`ModelConfig` as ``model.config``, in training mode.

    Raises:
        UserError: an unknown name, weights that cannot be read or do not fit, or an image size
            that is no multiple of 32.
    """
    if name not in _CONFIGS:
        raise UserError(f"unknown model {name!r}; choose one of {', '.join(MODEL_NAMES)}")
    config = replace(_CONFIGS[name], num_classes=num_classes, dropout=dropout)
    if config.trunk == _VIT:
        config = replace(config, image_size=image_size)
    if hsa_stages is not None:
        if not config.hsa_stages:
            raise UserError(f"model {name} has no self-attention, so hsa_stages does not apply")
        config = replace(config, hsa_stages=tuple(hsa_stages))
    if weights is None:
        return build_model(config, backend)
    trunk_weights = read_trunk_weights(weights, config.trunk)
    config = replace(config, stride_in_1x1=trunk_weights.stride_in_1x1)
    model = build_model(config, backend)
    load_trunk(model, trunk_weights)
    return model


def build_model(config: ModelConfig, backend: str = "auto") -> FilmModel:
    """The model that ``config`` describes, with random weights.

    ``backend`` matters to models with attention of ours alone, not to VGG and ViT.

    Raises :class:`hmc_fast.kernels.backend.UnknownBackendError` for an unknown backend.
    """
    check_backend_name(backend, "backend")
    model = _build(config, backend)
    model.config = config
    return model


def _build(config: ModelConfig, backend: str) -> FilmModel:
    if config.trunk in VGG_LAYERS:
        return VGGClassifier(config.trunk, config.num_classes, config.dropout)
    if config.trunk == _VIT:
        if config.image_size is None:
            raise TypeError("image_size, which vit_b_16 needs")
        return ViTClassifier(config.num_classes, config.image_size, config.dropout)
    return HMCNet(
        trunk=config.trunk,
        num_classes=config.num_classes,
        hsa_stages=config.hsa_stages,
        msca=config.msca,
        stride_in_1x1=config.stride_in_1x1,
        dropout=config.dropout,
        backend=backend,
    )
