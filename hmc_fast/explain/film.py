"""Everything that is said about one film: prediction, maps, and the annotated lesion."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from hmc_fast.checkpoint import CheckpointMetadata, LoadedModel
from hmc_fast.data import TASKS, Film, Preprocessing, film_image
from hmc_fast.data.lesions import lesion_mask
from hmc_fast.errors import UserError
from hmc_fast.evaluation.predict import film_logits
from hmc_fast.explain.methods import (
    CAM_METHODS,
    LESIONS,
    METHODS,
    SCALE,
    TITLES,
    ActivationMap,
    ScoreOptions,
    activation_map,
    has_lesion_head,
)
from hmc_fast.explain.scale import ScaleMap, has_scale_map, scale_map
from hmc_fast.explain.scores import energy_in_lesion, pointing_game
from hmc_fast.models import FilmModel

COARSE = 8
"""A feature map of fewer rows or columns says little about where."""
DISPLAY_SIDE = 768
"""Films are drawn at least this large, whatever the size that the model sees."""


@dataclass(frozen=True)
class FilmExplanation:
    """What a model says of one film, and why.

    Args:
        film: the film and its annotated findings, if any.
        probabilities: of the classes, in the order of ``class_names``.
        class_index: the class that the maps speak for.
        image: the model's input before it is normalised, ``[H, W]`` in 0…1.
        picture: the same framing at display size, ``[h, w]`` in 0…1, to lay maps over.
        outline: mask ``[h, w]`` of the annotated lesions in ``picture``, or None without any.
        lesions: by class, the mask ``[H, W]`` in the input of the annotated lesions that stand for
            it; no class that normal films have too.
        maps: one for each activation-map method, ``[H, W]``.
        scale: the scale map, or None where it was not asked for or the model has none.
        notes: what a reader has to know: methods left out, and why.
    """

    film: Film
    class_names: tuple[str, ...]
    probabilities: tuple[float, ...]
    class_index: int
    image: NDArray[np.float32]
    picture: NDArray[np.float32]
    outline: NDArray[np.bool_] | None
    lesions: dict[int, NDArray[np.bool_]]
    maps: tuple[ActivationMap, ...]
    scale: ScaleMap | None
    notes: tuple[str, ...]

    @property
    def predicted(self) -> str:
        return self.class_names[int(np.argmax(self.probabilities))]

    @property
    def explained(self) -> str:
        return self.class_names[self.class_index]

    def to_json(self) -> dict[str, Any]:
        """Prediction, and for each method what can be said in numbers; maps are left out."""
        return {
            "film": self.film.film_id,
            "file": str(self.film.path),
            "probabilities": dict(zip(self.class_names, self.probabilities, strict=True)),
            "predicted": self.predicted,
            "explained": self.explained,
            "annotated": self.outline is not None,
            "maps": [
                {
                    "method": activation.method,
                    "layer": activation.layer,
                    "class": self.class_names[activation.class_index],
                    "grid": list(activation.grid),
                    "note": activation.note,
                    "pointing_game": self._about_lesion(pointing_game, activation),
                    "energy_in_lesion": self._about_lesion(energy_in_lesion, activation),
                }
                for activation in self.maps
            ],
            "scale": None
            if self.scale is None
            else {
                "film_shares": self.scale.film_shares,
                "token_shares": self.scale.token_shares,
            },
            "notes": list(self.notes),
        }

    def _about_lesion(self, score: Any, activation: ActivationMap) -> float | None:
        """None where no annotated lesion stands for the class that the map speaks for."""
        lesion = self.lesions.get(activation.class_index)
        return None if lesion is None else float(score(activation.values, lesion))


def explain_film(
    loaded: LoadedModel,
    film: Film,
    methods: Sequence[str] | None = None,
    *,
    class_name: str | None = None,
    layer: str | None = None,
    score: ScoreOptions | None = None,
) -> FilmExplanation:
    """Predict one film and draw up its maps.

    Args:
        loaded: model and metadata of a checkpoint; the model's device is used.
        film: the film; findings with a circle become the lesion.
        methods: None for :func:`usual_methods`; else of :data:`hmc_fast.explain.METHODS`. A map
            that the model does not have is left out with a note where others are asked for too.
        class_name: the class that the maps speak for; None for the predicted one.
        layer: as in :func:`hmc_fast.explain.activation_map`.
        score: how Score-CAM runs.

    Raises:
        UserError: as :func:`hmc_fast.explain.activation_map`, the film cannot be read, the class
            is unknown, or the model's output is not finite.
    """
    model, metadata = loaded
    methods = usual_methods(model) if methods is None else check_methods(methods)
    pixels, placed, _ = film_image(film.path, metadata.preprocessing)
    device = next(model.parameters()).device
    image = metadata.preprocessing.normalise(placed).to(device)
    with torch.no_grad():
        logits = film_logits(model, image[None], metadata.preprocessing)[0]
    if not logits.isfinite().all():
        raise UserError(f"{film.path}: the model's output is not finite; train it again")
    class_index = int(logits.argmax()) if class_name is None else _class(metadata, class_name)
    notes = []
    if metadata.preprocessing.average_flips:
        notes.append("the prediction averages the film and its mirror image, the maps do not")
    if metadata.bilateral:
        notes.append("probabilities are of each film by itself; predict compares both breasts")
    if metadata.operating_point is not None:
        notes.append(
            f"predicted is the likelier class; predict decides by the checkpoint's threshold, "
            f"{metadata.operating_point.threshold:.3f} for {metadata.class_names[1]}"
        )
    if len(methods) > 1:
        missing = {m: reason for m in methods if (reason := why_no_map(model, m)) is not None}
        notes += [f"{TITLES[m]}: {metadata.model.name} {reason}" for m, reason in missing.items()]
        methods = tuple(method for method in methods if method not in missing)
    maps = tuple(
        activation_map(model, image, method, class_index, layer=layer, score=score)
        for method in methods
        if method in (*CAM_METHODS, LESIONS)
    )
    scale = scale_map(model, image) if SCALE in methods else None
    lesions = _lesions_by_class(metadata, pixels, film)
    display = _display(metadata.preprocessing)
    return FilmExplanation(
        film=film,
        class_names=metadata.class_names,
        probabilities=tuple(logits.softmax(0).tolist()),
        class_index=class_index,
        image=placed[0].numpy(),
        picture=display.place(pixels)[0][0].numpy(),
        outline=lesion_in(display, pixels, film),
        lesions=lesions,
        maps=maps,
        scale=scale,
        notes=(
            *notes,
            *_coarse_notes(maps, scale),
            *_unscored_notes(metadata, film, lesions, maps),
        ),
    )


def usual_methods(model: FilmModel) -> tuple[str, ...]:
    """The lesion map of a model that has one, else Grad-CAM."""
    return (LESIONS,) if has_lesion_head(model) else ("gradcam",)


def why_no_map(model: FilmModel, method: str) -> str | None:
    """What the model lacks for a method, or None."""
    if method == SCALE and not has_scale_map(model):
        return "has no multi-scale cross-attention"
    if method == LESIONS and not has_lesion_head(model):
        return "has no lesion head"
    return None


def check_methods(methods: Sequence[str]) -> tuple[str, ...]:
    """The methods without repeats, in the order of :data:`METHODS`; ``"all"`` stands for them all.

    Raises :class:`UserError` for an unknown one.
    """
    for method in methods:
        if method not in (*METHODS, "all"):
            raise UserError(f"unknown method {method!r}; choose of {', '.join(METHODS)}, all")
    return tuple(m for m in METHODS if m in methods or "all" in methods)


def lesion_in(
    preprocessing: Preprocessing, pixels: NDArray[np.float32], film: Film
) -> NDArray[np.bool_] | None:
    """The annotated lesions as a mask of the model's input ``[H, W]``, or None without any.

    A lesion smaller than a pixel keeps the pixel that it covers most.
    """
    mask = lesion_mask(film, (pixels.shape[0], pixels.shape[1]))
    resized = preprocessing.resize(mask, preprocessing.frame(pixels))[0].numpy()
    if not resized.any():
        return None
    inside: NDArray[np.bool_] = resized >= min(0.5, float(resized.max()))
    return inside


def _lesions_by_class(
    metadata: CheckpointMetadata, pixels: NDArray[np.float32], film: Film
) -> dict[int, NDArray[np.bool_]]:
    """The masks of :func:`lesion_in` by the class that the lesions stand for in the task."""
    classes = TASKS[metadata.task].classes
    masks = {}
    for index in sorted({classes[f.severity] for f in film.findings if f.severity in classes}):
        if index != classes.get("normal"):
            findings = tuple(f for f in film.findings if classes.get(f.severity) == index)
            mask = lesion_in(metadata.preprocessing, pixels, replace(film, findings=findings))
            if mask is not None:
                masks[index] = mask
    return masks


def _coarse_notes(maps: Sequence[ActivationMap], scale: ScaleMap | None) -> list[str]:
    grids = [(a.method, a.grid) for a in maps]
    if scale is not None:
        grids.append((SCALE, scale.grid))
    return [
        f"{TITLES[method]}: its feature map has {rows}×{columns} cells, coarser than "
        f"{COARSE}×{COARSE}; it hardly tells where. A larger --size in training gives more"
        f"{', an earlier --layer too' if method in CAM_METHODS else ''}"
        for method, (rows, columns) in grids
        if min(rows, columns) < COARSE
    ]


def _unscored_notes(
    metadata: CheckpointMetadata,
    film: Film,
    lesions: dict[int, NDArray[np.bool_]],
    maps: Sequence[ActivationMap],
) -> list[str]:
    if not any(finding.radius is not None for finding in film.findings):
        return []
    names = metadata.class_names
    return [
        f"{TITLES[a.method]}: not scored, it speaks for {names[a.class_index]} and the annotated "
        f"finding is {film.severity}"
        for a in maps
        if a.class_index not in lesions
    ]


def _display(preprocessing: Preprocessing) -> Preprocessing:
    """The same framing at display size."""
    factor = max(1, -(-DISPLAY_SIDE // preprocessing.height))
    return replace(
        preprocessing, height=factor * preprocessing.height, width=factor * preprocessing.width
    )


def _class(metadata: CheckpointMetadata, name: str) -> int:
    if name not in metadata.class_names:
        raise UserError(
            f"unknown class {name!r}; the checkpoint knows {', '.join(metadata.class_names)}"
        )
    return metadata.class_names.index(name)
