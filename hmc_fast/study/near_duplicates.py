"""Films that are copies of each other: rotated, mirrored, resized or with another brightness.

A copy that was shifted or cropped is not found.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter, map_coordinates

SIDE = 128
"""Films are compared at this many pixels a side."""
FINE, COARSE = 1.0, 4.0
"""Standard deviations, in pixels, of the band that is compared: texture, not noise or shape."""
LEAST_CONTRAST = 0.01
"""Added to the local contrast that the band is divided by, so that borders do not dominate."""
RADII, ANGLES = 48, 256
SAME_FILM = 0.9
"""Correlation from which two films count as one. On MIAS different films stay below .85 and copies
at any angle above .95."""


class NearDuplicate(NamedTuple):
    """Indices of two films, and their largest correlation over rotations and mirroring."""

    first: int
    second: int
    correlation: float


def near_duplicates(
    films: Sequence[NDArray[np.floating]], sides: Sequence[str], threshold: float = SAME_FILM
) -> list[NearDuplicate]:
    """Pairs on different sides that look like copies of one film, the most alike first.

    Films are resampled on rings around their centre, where a rotation is a shift along the ring and
    a mirror image its reversal; a Fourier transform along the rings compares all angles at once.

    Args:
        films: ``[128, 128]`` each, in 0…1, see :data:`SIDE`.
        sides: the side of each film.
        threshold: least correlation.
    """
    spectra = np.stack([_ring_spectrum(film) for film in films])
    names = np.array(sides)
    pairs = []
    for first in range(len(films)):
        others = np.flatnonzero(names[first + 1 :] != names[first]) + first + 1
        if not len(others):
            continue
        best = np.maximum(
            _largest_correlation(spectra[first], spectra[others]),
            _largest_correlation(spectra[first].conj(), spectra[others]),
        )
        pairs += [
            NearDuplicate(first, int(second), float(value))
            for second, value in zip(others, best, strict=True)
            if value >= threshold
        ]
    return sorted(pairs, key=lambda pair: -pair.correlation)


def _ring_spectrum(film: NDArray[np.floating]) -> NDArray[np.complex64]:
    """``[RADII, ANGLES // 2 + 1]`` of unit norm over all angles."""
    centre = (SIDE - 1) / 2
    band = gaussian_filter(film, FINE) - gaussian_filter(film, COARSE)
    contrast = np.sqrt(gaussian_filter(band**2, COARSE))
    band = band / (contrast + LEAST_CONTRAST)
    radius = np.linspace(2, centre - 2, RADII)[:, None]
    angle = 2 * math.pi * np.arange(ANGLES) / ANGLES
    rings = map_coordinates(
        band, [centre + radius * np.sin(angle), centre + radius * np.cos(angle)], order=1
    )
    rings = (rings - rings.mean()) * np.sqrt(radius)
    norm = np.linalg.norm(rings)
    return np.asarray(np.fft.rfft(rings / (norm if norm > 0 else 1), axis=1), np.complex64)


def _largest_correlation(
    one: NDArray[np.complex64], many: NDArray[np.complex64]
) -> NDArray[np.float64]:
    """Over all rotations, of ``one [RADII, F]`` with each of ``many [n, RADII, F]``."""
    products = np.einsum("rf,nrf->nf", one.conj(), many)
    return np.asarray(np.fft.irfft(products, ANGLES, axis=1).max(1))
