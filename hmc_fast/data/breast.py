"""Where the breast is on a film: the largest bright region, without labels and scanner borders."""

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import binary_opening, gaussian_filter, label

WORKING_SIDE = 256
"""The mask is found on a film reduced to about this many pixels a side."""
MARGIN = 0.02
"""Kept around the breast, as a share of the longer side of its box."""
LEAST_SHARE = 0.02
"""A region smaller than this share of the film is no breast."""


def breast_mask(film: NDArray[np.float32]) -> NDArray[np.bool_]:
    """The breast on a film ``[H, W]`` in 0…1; all of the film where none is found.

    The threshold is Otsu's (1979) between background and tissue on a smoothed, reduced film; an
    opening cuts off what touches the breast only thinly, such as tape and labels.
    """
    step = max(1, max(film.shape) // WORKING_SIDE)
    small = gaussian_filter(film.astype(np.float64), step / 2)[::step, ::step]
    opened = binary_opening(small > _otsu_threshold(small) / 2, iterations=5)
    regions, count = label(opened)
    if count == 0:
        return np.ones(film.shape, np.bool_)
    sizes = np.bincount(regions.ravel())
    sizes[0] = 0
    if sizes.max() < LEAST_SHARE * small.size:
        return np.ones(film.shape, np.bool_)
    large = np.repeat(np.repeat(regions == sizes.argmax(), step, 0), step, 1)
    return np.asarray(large[: film.shape[0], : film.shape[1]])


def breast_box(mask: NDArray[np.bool_]) -> tuple[int, int, int, int]:
    """Rows and columns around the mask with a small margin: ``(top, bottom, left, right)``."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    margin = round(MARGIN * max(np.ptp(rows), np.ptp(columns)))
    return (
        max(0, int(rows[0]) - margin),
        min(mask.shape[0], int(rows[-1]) + 1 + margin),
        max(0, int(columns[0]) - margin),
        min(mask.shape[1], int(columns[-1]) + 1 + margin),
    )


def lies_right(mask: NDArray[np.bool_]) -> bool:
    """True where the chest wall is at the right: there the breast is tallest."""
    heights = mask.sum(0)
    columns = np.flatnonzero(heights)
    middle = (columns[0] + columns[-1] + 1) // 2
    return bool(heights[middle:].sum() > heights[:middle].sum())


def _otsu_threshold(values: NDArray[np.float64]) -> float:
    """The threshold that separates two classes with the largest variance between them."""
    counts, edges = np.histogram(values, bins=256)
    centres = (edges[:-1] + edges[1:]) / 2
    below = np.cumsum(counts)
    above = below[-1] - below
    sums = np.cumsum(counts * centres)
    with np.errstate(divide="ignore", invalid="ignore"):
        between = below * above * (sums / below - (sums[-1] - sums) / above) ** 2
    return float(centres[np.argmax(np.nan_to_num(between))])
