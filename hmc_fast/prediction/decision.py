"""From which probability on a film is called positive, and who says so."""

from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import Any

from hmc_fast.checkpoint import CheckpointMetadata
from hmc_fast.errors import UserError


@dataclass(frozen=True)
class Decision:
    """``threshold`` is a probability of class 1, or None for the likelier class."""

    threshold: float | None
    origin: str

    def to_json(self) -> dict[str, Any]:
        return {"threshold": self.threshold, "origin": self.origin}


def decide(
    members: Sequence[CheckpointMetadata], threshold: float | None, *, compare: bool
) -> Decision:
    """The threshold that is asked for, else the checkpoints' operating point, else none.

    Several checkpoints give the mean of their thresholds. An operating point counts only where
    breasts are compared as they were when it was chosen (``compare``).

    Raises :class:`UserError` for a threshold where there are more than two classes.
    """
    first = members[0]
    if threshold is not None:
        if len(first.class_names) != 2:
            raise UserError("--threshold is for two classes; the checkpoint has more")
        return Decision(threshold, "--threshold")
    points = [member.operating_point for member in members if member.operating_point is not None]
    if len(points) < len(members):
        return Decision(None, "the likelier class")
    if compare != first.bilateral:
        return Decision(
            None, "the likelier class; the operating point is for the checkpoint's rule of breasts"
        )
    mean = f", mean of {len(points)} checkpoints" if len(points) > 1 else ""
    return Decision(
        fmean(point.threshold for point in points),
        f"operating point of the checkpoint{mean}: specificity "
        f"{fmean(point.specificity for point in points):.2f}, sensitivity "
        f"{fmean(point.sensitivity for point in points):.2f} on training films out of fold",
    )
