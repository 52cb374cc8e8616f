"""Lesions: masks of their circles, and crops around them at the film's own resolution.

Breasts without a lesion give crops as large.

A lesion of a few millimetres is a few pixels of a film at 224². A network that has first seen
lesions enlarged learns from fewer films what to look for (Shen et al. 2019, Scientific Reports
9:12495, train on patches before whole films).
"""

import hashlib

import numpy as np
from numpy.typing import NDArray

from hmc_fast.data.breast import breast_mask
from hmc_fast.data.films import Film
from hmc_fast.data.frame import Box

SIDE_IN_RADII = 4
"""A crop's side, so that the lesion fills half of it."""
LEAST_SHARE, USUAL_SHARE = 1 / 8, 1 / 4
"""Of the film's shorter side: the smallest crop, and the crop of a film without a circle."""


def crop_box(film: Film, pixels: NDArray[np.float32], *, mirrored: bool) -> Box:
    """The square around the film's first circle, or around a place in the breast without one.

    That place is drawn by the film's name, the same every time. The square lies inside the film.

    Args:
        film: the film's findings.
        pixels: ``[H, W]`` in 0…1.
        mirrored: whether the crop is mirrored, as the film is.
    """
    rows, columns = pixels.shape
    shorter = min(rows, columns)
    circle = next((f for f in film.findings if f.radius is not None), None)
    if circle is not None and circle.x is not None and circle.y is not None:
        assert circle.radius is not None
        side = SIDE_IN_RADII * circle.radius
        row, column = rows - 1 - circle.y, circle.x  # MIAS counts y from the bottom
    else:
        side = round(USUAL_SHARE * shorter)
        places = np.argwhere(breast_mask(pixels))
        digest = hashlib.sha256(film.film_id.encode()).digest()
        row, column = places[int.from_bytes(digest[:8], "little") % len(places)].tolist()
    side = min(max(side, round(LEAST_SHARE * shorter)), shorter)
    top = min(max(row - side // 2, 0), rows - side)
    left = min(max(column - side // 2, 0), columns - side)
    return Box(top, top + side, left, left + side, mirrored)


def lesion_mask(film: Film, shape: tuple[int, int]) -> NDArray[np.float32]:
    """1 inside the circles of the film's findings and 0 outside, for a film of ``shape [H, W]``.

    MIAS counts y upwards from the lowest row. Findings without a circle leave no trace.
    """
    height, width = shape
    y = np.arange(height - 1, -1, -1)[:, None]
    x = np.arange(width)[None, :]
    mask = np.zeros(shape, bool)
    for finding in film.findings:
        if finding.x is not None and finding.y is not None and finding.radius is not None:
            mask |= np.hypot(x - finding.x, y - finding.y) <= finding.radius
    return mask.astype(np.float32)
