"""One breast against the other: a finding in one of them alone is more suspicious.

Breasts of one woman resemble each other, so the other breast says how large a score her tissue
gives without a cancer.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

OWN_RULE = "v"
BILATERAL_RULE = "2v - v_mate"


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
    sides: Sequence[str],
    views: Sequence[str] | None = None,
) -> BilateralScores:
    """``2v - v_mate``, with the mean score of the patient's films of the other side as ``v_mate``.

    A film without one keeps its own score ``v``.

    Args:
        scores: ``[films]``, ``v``.
        patients: the patient of each film.
        sides: ``"L"`` or ``"R"``.
        views: such as ``"MLO"``; films of different views are not compared. By default all films
            are of one view.
    """
    own = np.asarray(scores, np.float64)
    kinds = [""] * len(own) if views is None else list(views)
    films: dict[tuple[str, str, str], list[int]] = {}
    for index, key in enumerate(zip(patients, kinds, sides, strict=True)):
        films.setdefault(key, []).append(index)
    result, compared = own.copy(), np.zeros(len(own), np.bool_)
    for (patient, view, side), members in films.items():
        mates = films.get((patient, view, "L" if side == "R" else "R"))
        if mates:
            result[members] = 2 * own[members] - own[mates].mean()
            compared[members] = True
    return BilateralScores(result, compared)


def patient_scores(
    scores: NDArray[np.floating], patients: Sequence[str]
) -> tuple[tuple[str, ...], NDArray[np.float64]]:
    """Patients, sorted, and the largest score of each one's films."""
    names, index = np.unique(np.asarray(patients), return_inverse=True)
    largest = np.full(len(names), -np.inf)
    np.maximum.at(largest, index, np.asarray(scores, np.float64))
    return tuple(names.tolist()), largest
