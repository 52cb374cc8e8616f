"""Models by name. To add one, write its class, then one :class:`ModelEntry` below.

Training, weights, explanations, the study and the benchmark ask the entry and know no classes.
"""

from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hmc_fast.errors import UserError
from hmc_fast.kernels.backend import check_backend_name
from hmc_fast.models.baselines import VGG_LAYERS, VGGClassifier, ViTClassifier
from hmc_fast.models.hmc_net import HMCNet
from hmc_fast.models.weights import load_trunk, read_trunk_weights
from hmc_fast.schema import STRICT

FilmModel = HMCNet | VGGClassifier | ViTClassifier
"""Any model of :data:`MODEL_NAMES`; its :class:`ModelConfig` is ``model.config``."""

_HSA_STAGES = ("C3", "C4", "C5")
LESION_SUFFIX = "_lesions"
"""Ends the names of the ResNets with a lesion head."""


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
    lesion_head: bool = False

    __pydantic_config__ = STRICT

    def __post_init__(self) -> None:
        """Raises :class:`UserError` for a dropout that is no probability."""
        if not 0 <= self.dropout <= 1:
            raise UserError(f"dropout is {self.dropout}, needs 0 to 1")

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "hsa_stages": list(self.hsa_stages)}


@dataclass(frozen=True)
class ModelEntry:
    """What the package knows of one named model.

    Args:
        config: its configuration before classes, dropout and weights are chosen.
        build: makes the model of a configuration, with the backend of its attention.
        head: prefix of the names of the layer that gives the logits; it is never pretrained.
        cam_layer: the feature map that explanations are made from: the last before the pooling.
        token_maps: its feature maps are tokens ``[B, 1 + h·w, C]``, the class token first.
        fixed_size: it classifies square images of the one size that it is built for.
    """

    config: ModelConfig
    build: Callable[[ModelConfig, str], FilmModel]
    head: str
    cam_layer: Callable[[Any], str]
    token_maps: bool = False
    fixed_size: bool = False

    @property
    def is_resnet(self) -> bool:
        """Whether the model is an :class:`HMCNet`."""
        return self.build is _build_resnet

    @property
    def has_attention(self) -> bool:
        """Whether it has attention blocks of ours, so that backends differ."""
        return bool(self.config.hsa_stages) or self.config.msca


def _build_resnet(config: ModelConfig, backend: str) -> HMCNet:
    return HMCNet(
        trunk=config.trunk,
        num_classes=config.num_classes,
        hsa_stages=config.hsa_stages,
        msca=config.msca,
        stride_in_1x1=config.stride_in_1x1,
        dropout=config.dropout,
        lesion_head=config.lesion_head,
        backend=backend,
    )


def _build_vgg(config: ModelConfig, backend: str) -> VGGClassifier:
    return VGGClassifier(config.trunk, config.num_classes, config.dropout)


def _build_vit(config: ModelConfig, backend: str) -> ViTClassifier:
    if config.image_size is None:
        raise TypeError("image_size, which vit_b_16 needs")
    return ViTClassifier(config.num_classes, config.image_size, config.dropout)


def _resnet_cam_layer(model: HMCNet) -> str:
    """The fused C5, C5 after its attention, or C5 itself; C4 where a lesion head reads it."""
    if model.lesion_head is not None:
        return "hsa.C4" if "C4" in model.hsa else "layer3"
    if model.msca is not None:
        return "msca"
    return "hsa.C5" if "C5" in model.hsa else "layer4"


def _vgg_cam_layer(model: VGGClassifier) -> str:
    """The last convolution's ReLU, as in the Grad-CAM paper; a pooling follows."""
    return f"features.{len(model.features) - 2}"


def _vit_cam_layer(model: ViTClassifier) -> str:
    """The normalised input of the last attention, after which patches reach no class token."""
    return f"encoder.layers.encoder_layer_{len(model.encoder.layers) - 1}.ln_1"


def _resnets(trunk: str, full_name: str) -> Iterator[ModelEntry]:
    for name, hsa_stages, msca in (
        (full_name, _HSA_STAGES, True),
        (f"{trunk}_hsa", _HSA_STAGES, False),
        (f"{trunk}_msca", (), True),
        (trunk, (), False),
    ):
        config = ModelConfig(name, trunk=trunk, hsa_stages=hsa_stages, msca=msca)
        yield ModelEntry(config, _build_resnet, "fc.", _resnet_cam_layer)
        with_head = replace(config, name=f"{name}{LESION_SUFFIX}", lesion_head=True)
        yield ModelEntry(with_head, _build_resnet, "fc.", _resnet_cam_layer)


_ENTRIES = {
    entry.config.name: entry
    for entry in (
        *_resnets("resnet50", "hmc_net"),
        *(
            ModelEntry(ModelConfig(name, trunk=name), _build_vgg, "classifier.6.", _vgg_cam_layer)
            for name in VGG_LAYERS
        ),
        ModelEntry(
            ModelConfig("vit_b_16", trunk="vit_b_16"),
            _build_vit,
            "heads.",
            _vit_cam_layer,
            token_maps=True,
            fixed_size=True,
        ),
        *_resnets("resnet18", "hmc_net_resnet18"),
    )
}
MODEL_NAMES = tuple(_ENTRIES)
TRUNKS = tuple(dict.fromkeys(entry.config.trunk for entry in _ENTRIES.values()))


def model_entry(name: str) -> ModelEntry:
    """Raises :class:`UserError` for an unknown name."""
    if name not in _ENTRIES:
        raise UserError(f"unknown model {name!r}; choose one of {', '.join(MODEL_NAMES)}")
    return _ENTRIES[name]


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
            ``resnet50``, the same on a ResNet18 trunk, each of these with a lesion head as
            ``hmc_net_lesions`` and so on, and the baselines ``vgg16``, ``vgg19`` and ``vit_b_16``.
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
    entry = model_entry(name)
    config = replace(entry.config, num_classes=num_classes, dropout=dropout)
    if entry.fixed_size:
        config = replace(config, image_size=image_size)
    if hsa_stages is not None:
        if not config.hsa_stages:
            raise UserError(f"model {name} has no self-attention, so hsa_stages does not apply")
        config = replace(config, hsa_stages=tuple(hsa_stages))
    if weights is None:
        return build_model(config, backend)
    trunk_weights = read_trunk_weights(weights, config.trunk, entry.head)
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
    model = _ENTRIES[config.name].build(config, backend)
    model.config = config
    return model
