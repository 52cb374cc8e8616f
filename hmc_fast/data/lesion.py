"""Annotated lesions as masks."""

import numpy as np
from numpy.typing import NDArray

from hmc_fast.data.films import Film


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
