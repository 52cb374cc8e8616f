"""Class activation maps of one film by name, on pytorch-grad-cam."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn.functional import interpolate

from hmc_fast.errors import UserError
from hmc_fast.explain.layers import TargetLayer, target_layer
from hmc_fast.inference import folded
from hmc_fast.models import FilmModel, HMCNet
from hmc_fast.models.lesion_head import breast_cells, smooth

GRADIENT_METHODS = ("gradcam", "gradcam++")
CAM_METHODS = (*GRADIENT_METHODS, "scorecam")
LESIONS = "lesions"
SCALE = "scale"
METHODS = (*CAM_METHODS, LESIONS, SCALE)
TITLES = {
    "gradcam": "Grad-CAM",
    "gradcam++": "Grad-CAM++",
    "scorecam": "Score-CAM",
    LESIONS: "Lesion map",
    SCALE: "Scale map",
}
SCORE_PIXELS = 16 * 224**2
"""Score-CAM's batches hold this many pixels by default: 16 films at 224², one at 1024²."""
FLAT = "flat: at this layer no region speaks for the class more than another"
NOT_FINITE = "not finite: the gradients or activations overflowed, so nothing is drawn"


@dataclass(frozen=True)
class ScoreOptions:
    """How Score-CAM runs.

    Args:
        batch_size: masked inputs a forward pass; None for as many as hold :data:`SCORE_PIXELS`.
        channels: how many channels to score, of largest variance first; None for all of them,
            which is the published method and takes a forward pass for each.
        on_batch: called with the channels scored since the last call, and those to score in all.
    """

    batch_size: int | None = None
    channels: int | None = None
    on_batch: Callable[[int, int], object] = lambda done, total: None

    def __post_init__(self) -> None:
        for name, value in (("batch size", self.batch_size), ("channels", self.channels)):
            if value is not None and value < 1:
                raise UserError(f"Score-CAM's {name} is {value}, needs at least 1")

    def batch_size_for(self, height: int, width: int) -> int:
        """Masked inputs of ``height × width`` a forward pass."""
        return self.batch_size or max(1, SCORE_PIXELS // (height * width))


@dataclass(frozen=True)
class ActivationMap:
    """How much each pixel speaks for a class, by one method at one layer.

    ``values`` are ``[H, W]`` in 0…1, fp32, of the size of the model's input, and finite; they were
    enlarged from ``grid`` rows and columns, those of the layer. ``note`` says why they are zero
    everywhere, and is None where they are not.
    """

    method: str
    layer: str
    class_index: int
    values: NDArray[np.float32]
    grid: tuple[int, int]
    note: str | None = None


def activation_map(
    model: FilmModel,
    image: Tensor,
    method: str,
    class_index: int,
    *,
    layer: str | None = None,
    score: ScoreOptions | None = None,
) -> ActivationMap:
    """The map of one film that speaks for a class.

    Grad-CAM (Selvaraju et al. 2017), Grad-CAM++ (Chattopadhay et al. 2018) or Score-CAM (Wang et
    al. 2020), or the malignant map of a model's lesion head, which is no explanation after the fact
    but what the film's score is read from. The model's mode, parameters and their
    ``requires_grad`` are left as they were.

    Args:
        model: any of :data:`hmc_fast.MODEL_NAMES`, on any backend.
        image: ``[3, H, W]``, normalised as the model wants it.
        method: one of :data:`CAM_METHODS`, or ``"lesions"``.
        class_index: the class that the map speaks for; the lesion map always speaks for class 1.
        layer: a module with a spatial output; see :func:`hmc_fast.explain.target_layer`.
        score: how Score-CAM runs.

    Raises:
        UserError: an unknown method, layer or class, grad-cam is not installed, or a method that
            needs gradients is called where PyTorch's inference mode forbids them.
    """
    if method not in (*CAM_METHODS, LESIONS):
        raise UserError(
            f"unknown method {method!r}; choose one of {', '.join((*CAM_METHODS, LESIONS))}"
        )
    if not 0 <= class_index < model.config.num_classes:
        raise UserError(f"class {class_index}: the model has {model.config.num_classes} classes")
    if method in GRADIENT_METHODS:
        _check_gradients_possible(model, method)
    if method == LESIONS:
        return _lesion_map(model, image)
    target = target_layer(model, layer)
    if method not in GRADIENT_METHODS:  # hundreds of passes: they repay the copy
        model = folded(model, keep=[target.name])
        target = target_layer(model, target.name)
    with explaining(model):
        if method in GRADIENT_METHODS:
            values, grid = _gradient_map(model, image, method, class_index, target)
        else:
            values, grid = _score_map(model, image, class_index, target, score or ScoreOptions())
    note = None
    if not np.isfinite(values).all():
        note = NOT_FINITE
    elif not values.any():
        note = FLAT
    return ActivationMap(
        method, target.name, class_index, np.zeros_like(values) if note else values, grid, note
    )


def _gradient_map(
    model: FilmModel, image: Tensor, method: str, class_index: int, target: TargetLayer
) -> tuple[NDArray[np.float32], tuple[int, int]]:
    library = _grad_cam()
    kind = library.GradCAM if method == "gradcam" else library.GradCAMPlusPlus
    cam = kind(model, [target.module], target.reshape)
    # Parameters are frozen, so the graph hangs on the image.
    with torch.enable_grad():
        return _run(cam, image.detach().clone().requires_grad_(), class_index)


def _score_map(
    model: FilmModel, image: Tensor, class_index: int, target: TargetLayer, score: ScoreOptions
) -> tuple[NDArray[np.float32], tuple[int, int]]:
    _grad_cam()
    from hmc_fast.explain.score_cam import StreamedScoreCAM

    cam = StreamedScoreCAM(
        model,
        target.module,
        target.reshape,
        batch_size=score.batch_size_for(*image.shape[-2:]),
        channels=score.channels,
        on_batch=score.on_batch,
    )
    with torch.no_grad():
        return _run(cam, image, class_index)


def _lesion_map(model: FilmModel, image: Tensor) -> ActivationMap:
    if not has_lesion_head(model):
        raise UserError(f"{TITLES[LESIONS]}: {model.config.name} has no lesion head")
    assert isinstance(model, HMCNet)
    head = model.lesion_head
    assert head is not None
    with explaining(model), torch.no_grad():
        malignant = smooth(model.lesion_maps(image[None])[:, :1], head.smoothing)
        evidence = malignant.sigmoid() * breast_cells(image[None], head.black)
        fine = interpolate(evidence, image.shape[-2:], mode="bilinear", align_corners=False)
    values = fine[0, 0].float().cpu().numpy()
    finite = bool(np.isfinite(values).all())
    return ActivationMap(
        LESIONS,
        "lesion_head",
        1,
        values if finite else np.zeros_like(values),
        (evidence.shape[-2], evidence.shape[-1]),
        None if finite else NOT_FINITE,
    )


def has_lesion_head(model: FilmModel) -> bool:
    """Whether the model draws lesion maps."""
    return isinstance(model, HMCNet) and model.lesion_head is not None


def _run(cam: Any, image: Tensor, class_index: int) -> tuple[NDArray[np.float32], tuple[int, int]]:
    """The map, and rows and columns of the layer."""
    rows = columns = 0

    def measure(layer: nn.Module, inputs: object, output: Tensor) -> None:
        nonlocal rows, columns
        reshape = cam.reshape_transform
        rows, columns = (output if reshape is None else reshape(output)).shape[-2:]

    hook = cam.target_layers[0].register_forward_hook(measure)
    try:
        with np.errstate(all="ignore"):  # what is not finite is looked for in the result
            result: NDArray[np.float32] = cam(image[None], [lambda logits: logits[class_index]])[0]
    finally:
        hook.remove()
        cam.activations_and_grads.release()
    return result, (rows, columns)


def _grad_cam() -> Any:
    try:
        import pytorch_grad_cam
    except ImportError as error:
        raise UserError(
            f"explanations need grad-cam ({error}); pip install 'hmc-fast[explain]'"
        ) from None
    return pytorch_grad_cam


def _check_gradients_possible(model: FilmModel, method: str) -> None:
    loaded_so = any(parameter.is_inference() for parameter in model.parameters())
    if torch.is_inference_mode_enabled() or loaded_so:
        where = "the model was made in" if loaded_so else "it was called in"
        raise UserError(
            f"{TITLES[method]} needs gradients, but {where} torch.inference_mode(), which has "
            "none; leave that block (torch.no_grad() is fine), or use scorecam"
        )


@contextmanager
def explaining(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in evaluation mode, its parameters take no gradients, and no ReLU
    overwrites the output of the layer before it, which a hook may hold.
    """
    modes = [(module, module.training) for module in model.modules()]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    overwriting = [m for m in model.modules() if isinstance(m, nn.ReLU) and m.inplace]
    try:
        model.eval()
        for parameter in trainable:
            parameter.requires_grad_(False)
        for relu in overwriting:
            relu.inplace = False
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter in trainable:
            parameter.requires_grad_(True)
        for relu in overwriting:
            relu.inplace = True
