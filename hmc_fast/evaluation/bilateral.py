"""One breast against the other: a finding in one of them alone is more suspicious.

Breasts of one woman resemble each other, so the other breast says how large a score her tissue
gives without a cancer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hmc_fast.data import Film

OWN_RULE = "v"
BILATERAL_RULE = "2v - v_mate"
OTHER_SIDE = {"L": "R", "R": "L"}


@dataclass(frozen=True)
class BilateralScores:
    """Scores ``[films]``, and whether each had a film of the other breast to be compared with."""

    scores: NDArray[np.float64]
    compared: NDArray[np.bool_]

    @property
    def rules(self) -> tuple[str, ...]:
        """The rule that gave each score: ``2v - v_mate``, or ``v`` for a film without a mate."""
        return tuple(BILATERAL_RULE if mate else OWN_RULE for mate in self.compared)


def bilateral_scores(
    scores: NDArray[np.floating],
    patients: Sequence[str],
    sides: Sequence[str | None],
    views: Sequence[str | None] | None = None,
) -> BilateralScores:
    """``2v - v_mate``, with the mean score of the patient's films of the other side as ``v_mate``.

    A film without one keeps its own score ``v``.

    Args:
        scores: ``[films]``, ``v``.
        patients: the patient of each film.
        sides: ``"L"`` or ``"R"``, or None where a film does not say, which is not compared.
        views: such as ``"MLO"``; films of different views are not compared. By default all films
            are of one view.
    """
    own = np.asarray(scores, np.float64)
    kinds = [None] * len(own) if views is None else list(views)
    films: dict[tuple[str, str | None, str | None], list[int]] = {}
    for index, key in enumerate(zip(patients, kinds, sides, strict=True)):
        films.setdefault(key, []).append(index)
    result, compared = own.copy(), np.zeros(len(own), np.bool_)
    for (patient, view, side), members in films.items():
        mates = films.get((patient, view, OTHER_SIDE[side])) if side in OTHER_SIDE else None
        if mates:
            result[members] = 2 * own[members] - own[mates].mean()
            compared[members] = True
    return BilateralScores(result, compared)


def compare_films(scores: NDArray[np.floating], films: Sequence[Film]) -> BilateralScores:
    """:func:`bilateral_scores` of films that know their patient, side and view."""
    return bilateral_scores(
        scores,
        [film.patient_id for film in films],
        [film.side for film in films],
        [film.view for film in films],
    )


def compare_logits(
    logits: NDArray[np.floating], films: Sequence[Film]
) -> tuple[NDArray[np.float64], tuple[str, ...]]:
    """Logits ``[films, 2]`` whose margin is compared with the other breast's, and by which rule."""
    compared = compare_films(np.diff(logits, axis=1)[:, 0], films)
    return margin_logits(compared.scores), compared.rules


def margin_logits(margins: NDArray[np.float64]) -> NDArray[np.float64]:
    """Logits ``[films, 2]`` of given margins of class 1."""
    return np.stack([-margins / 2, margins / 2], 1)


def patient_scores(
    scores: NDArray[np.floating], patients: Sequence[str]
) -> tuple[tuple[str, ...], NDArray[np.float64]]:
    """Patients, sorted, and the largest score of each one's films."""
    names, index = np.unique(np.asarray(patients), return_inverse=True)
    largest = np.full(len(names), -np.inf)
    np.maximum.at(largest, index, np.asarray(scores, np.float64))
    return tuple(names.tolist()), largest
