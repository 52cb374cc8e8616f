"""Films: one picture of a breast, whose it is, what was found on it."""

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

from hmc_fast.errors import UserError

Severity = Literal["normal", "benign", "malignant"]
SEVERITIES: tuple[Severity, ...] = ("normal", "benign", "malignant")


@dataclass(frozen=True)
class Finding:
    """One annotated abnormality.

    ``x``, ``y`` (centre) and ``radius`` are in pixels of the original film with the origin at the
    bottom left, as MIAS gives them, or None where it gives none.
    """

    kind: str
    severity: Severity
    x: int | None = None
    y: int | None = None
    radius: int | None = None


@dataclass(frozen=True)
class Film:
    """One film. ``patient_id`` groups the films of one woman within a ``collection``.

    ``rotation`` is in degrees, counter-clockwise; other than 0 makes the film a rotated copy of its
    film, as the augment-first protocol wants it. ``tissue`` is how dense the breast is, one of the
    values of :data:`hmc_fast.data.mias.TISSUES`, ``side`` the breast, ``"L"`` or ``"R"``, and
    ``view`` the projection, such as ``"MLO"``; each is None where nobody says.
    """

    film_id: str
    patient_id: str
    path: Path
    findings: tuple[Finding, ...]
    rotation: float = 0.0
    tissue: str | None = None
    side: str | None = None
    view: str | None = None
    collection: str = ""

    @property
    def sample_id(self) -> str:
        """The film's name, with the angle for a rotated copy: ``mdb001@8``."""
        return f"{self.film_id}@{self.rotation:g}" if self.rotation else self.film_id

    @property
    def severity(self) -> Severity:
        """The worst finding of the film."""
        return max((f.severity for f in self.findings), key=SEVERITIES.index, default="normal")


def rotated_copies(films: list[Film], copies: int) -> list[Film]:
    """Every film at ``copies`` angles that divide the circle evenly, the film itself first.

    Raises :class:`UserError` for fewer than two copies.
    """
    if copies < 2:
        raise UserError(f"{copies} rotated copies a film: augmenting first needs at least 2")
    angles = [round(360 * k / copies, 4) for k in range(copies)]
    return [replace(film, rotation=angle) for film in films for angle in angles]
