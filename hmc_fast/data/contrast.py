"""Local contrast of films: contrast-limited adaptive histogram equalisation (CLAHE)."""

import numpy as np
from numpy.typing import NDArray

from hmc_fast.errors import UserError

CLIP_LIMIT = 2.0
"""A grey counts at most so often, in multiples of the mean count, which bounds the slope."""
TILES = (8, 8)


def equalise(film: NDArray[np.floating]) -> NDArray[np.float32]:
    """A film ``[H, W]`` in 0…1 with its local contrast equalised (Zuiderveld, Graphics Gems 1994).

    Each of 8×8 tiles has a histogram of 256 greys of its own, clipped at twice the mean count; the
    curves of neighbouring tiles are interpolated. Computed by OpenCV, in 8 bits.

    Raises :class:`UserError` where OpenCV is not installed.
    """
    try:
        import cv2
    except ImportError:
        raise UserError(
            "CLAHE needs OpenCV; pip install 'hmc-fast[clahe]', or leave out --clahe"
        ) from None
    greys = np.round(np.clip(film, 0, 1) * 255).astype(np.uint8)
    equalised = cv2.createCLAHE(CLIP_LIMIT, TILES).apply(greys)
    return np.asarray(equalised, np.float32) / np.float32(255)
