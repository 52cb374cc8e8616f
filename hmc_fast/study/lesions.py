"""Cross-validation of the lesion head on cached features: out-of-fold maps and film scores."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hmc_fast.data import Case, Folds
from hmc_fast.evaluation import Predictions
from hmc_fast.evaluation.bilateral import bilateral_scores
from hmc_fast.models.lesion_head import LesionHead
from hmc_fast.training.features import FilmFeatures, read_features
from hmc_fast.training.lesion_fit import (
    PENALTY,
    film_positions,
    fit_lesion_head,
)

CLASS_NAMES = ("rest", "malignant")


@dataclass(frozen=True)
class FilmMaps:
    """Lesion maps ``[1, 3, h, w]`` and logit of a film; cells ``[1, 1, h, w]`` of its breast."""

    maps: Tensor
    breast: Tensor
    logit: float


@dataclass(frozen=True)
class LesionStudy:
    """What heads say of films that they have not seen, in the order of the films given.

    ``own`` scores a film by itself, ``bilateral`` compares it with the other breast where
    ``compared`` says that there was one. A score is the margin of the logits ``[-v/2, v/2]``.
    ``left_out`` names the films that no fit could learn from, see :func:`film_positions`.
    """

    own: Predictions
    bilateral: Predictions
    compared: NDArray[np.bool_]
    maps: tuple[FilmMaps, ...]
    left_out: tuple[str, ...]


def cross_validate_lesion_head(
    cases: Sequence[Case],
    labels: Sequence[int],
    files: Sequence[Path],
    folds: Folds,
    sides: Sequence[str],
    *,
    channels: tuple[int, int],
    penalty: float = PENALTY,
    seed: int = 0,
    on_fold: Callable[[int], object] = lambda fold: None,
) -> LesionStudy:
    """Fit a head in every fold and score the films that it has not seen.

    Args:
        cases: films.
        labels: 1 for malignant.
        files: their features, by :func:`hmc_fast.training.features.cache_features`.
        folds: about the same films.
        sides: ``"L"`` or ``"R"`` of each film.
        channels: of C3 and C4.
        penalty: see :data:`hmc_fast.training.lesion_fit.PENALTY`.
        seed: of the background positions.
        on_fold: called with each finished fold.

    Raises:
        UserError: a file is damaged, the folds are about other films, or a fold's training films
            hold no malignant lesion with a circle.
    """
    positions = [
        film_positions(read_features(file), case, seed)
        for case, file in zip(cases, files, strict=True)
    ]
    maps: dict[int, FilmMaps] = {}
    fold_of: dict[int, int] = {}
    for fold in range(folds.count):
        training, held_out = folds.split(list(cases), fold)
        usable = [film for i in training if (film := positions[i]) is not None]
        head = fit_lesion_head(usable, *channels, penalty)
        for index in held_out:
            maps[index] = lesion_maps(head, read_features(files[index]))
            fold_of[index] = fold
        on_fold(fold)
    in_order = tuple(maps[index] for index in range(len(cases)))
    own = Predictions(
        tuple(case.sample_id for case in cases),
        tuple(case.patient_id for case in cases),
        tuple(fold_of[index] for index in range(len(cases))),
        np.asarray(labels, np.int64),
        _logits(np.array([film.logit for film in in_order])),
        CLASS_NAMES,
    )
    bilateral = bilateral_scores(own.logits[:, 1] - own.logits[:, 0], own.patients, sides)
    left_out = tuple(c.sample_id for c, p in zip(cases, positions, strict=True) if p is None)
    compared = replace(own, logits=_logits(bilateral.scores))
    return LesionStudy(own, compared, bilateral.compared, in_order, left_out)


@torch.inference_mode()
def lesion_maps(head: LesionHead, features: FilmFeatures) -> FilmMaps:
    """A film's lesion maps and logit from cached features."""
    maps = head.maps(features.cells[None].float())
    breast = features.breast[None, None]
    return FilmMaps(maps, breast, float(head.film_logit(maps, breast)))


def _logits(scores: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.stack([-scores / 2, scores / 2], 1)
