"""Procedural mammogram phantoms, written like MIAS: the embedded data for demos and tests.

A phantom has a breast outline, fibroglandular texture and, by its label, no lesion, a smooth round
one (benign) or a spiculated one (malignant). Numbers measured on phantoms say that the software
runs, nothing about mammograms.
"""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from hmc_fast.errors import UserError
from hmc_fast.files import write_atomically, write_folder, write_text

BENIGN_RADIUS = (0.04, 0.07)
MALIGNANT_RADIUS = (0.05, 0.08)
SPICULES = (9, 15)
_SEED = "Seed "
PHANTOM_HEADER = "Procedural phantoms by hmc-fast, no patient data. Columns as in MIAS."


def write_phantoms(folder: Path, patients: int, size: int, seed: int = 0) -> None:
    """Write ``2 × patients`` films of ``size``² pixels and their ``Info.txt`` to an empty folder.

    Of every three patients one is normal, one has a benign finding in one breast and one has a
    malignant finding, in every other such patient in both breasts. The same seed gives the same
    files.

    Raises :class:`UserError` where the folder is not empty or not writable.
    """
    if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
        raise UserError(f"{folder}: is not empty; phantoms go into a folder of their own")
    write_folder(folder, lambda new: _write_films(new, patients, size, seed))


def _write_films(folder: Path, patients: int, size: int, seed: int) -> None:
    rows = [PHANTOM_HEADER, f"{_SEED}{seed}", ""]
    for patient in range(patients):
        for side in (0, 1):
            number = 2 * patient + side + 1
            severity = _severity(patient, side)
            rng = np.random.default_rng((seed, number))
            pixels, circle = draw_phantom(rng, size, severity, mirrored=side == 1)
            _save_pgm(folder / f"mdb{number:03d}.pgm", pixels)
            if circle is None:
                rows.append(f"mdb{number:03d} G NORM")
            else:
                kind = "SPIC" if severity == "M" else "CIRC"
                x, row, radius = circle
                rows.append(f"mdb{number:03d} G {kind} {severity} {x} {size - 1 - row} {radius}")
    write_text(folder / "Info.txt", "\n".join(rows) + "\n")


def are_phantoms(folder: Path) -> bool:
    """Whether the films of a MIAS-style folder are phantoms, by the first line of its Info.txt."""
    return phantoms_of(folder) is not None


def phantoms_of(folder: Path) -> str | None:
    """What sets phantoms apart from those of another seed; None for films that are none."""
    try:
        with (folder / "Info.txt").open(encoding="latin-1") as info:
            header, seed = info.readline().strip(), info.readline().strip()
    except OSError:
        return None
    return f"phantoms, {seed.lower()}" if header == PHANTOM_HEADER else None


def draw_phantom(
    rng: np.random.Generator, size: int, severity: str | None, mirrored: bool
) -> tuple[NDArray[np.float64], tuple[int, int, int] | None]:
    """One film ``[size, size]`` in 0…1, and its lesion as ``(column, row, radius)`` in pixels.

    ``severity`` is None, ``"B"`` or ``"M"``.
    """
    row, column = np.mgrid[0:size, 0:size] / size
    breast = (column / rng.uniform(0.62, 0.75)) ** 2 + ((row - 0.5) / rng.uniform(0.38, 0.44)) ** 2
    inside = 1 / (1 + np.exp((breast - 1) * 40))
    texture = sum(
        weight * _unit(gaussian_filter(rng.standard_normal((size, size)), size * width))
        for weight, width in ((0.6, 0.06), (0.3, 0.02), (0.1, 0.006))
    )
    film = inside * (0.35 + 0.1 * (1 - np.clip(breast, 0, 1)) + 0.09 * texture)
    circle = None
    if severity is not None:
        low, high = MALIGNANT_RADIUS if severity == "M" else BENIGN_RADIUS
        radius = rng.uniform(low, high)
        x, y = rng.uniform(0.15, 0.45), rng.uniform(0.35, 0.65)
        film = film + inside * _lesion(rng, row - y, column - x, radius, severity == "M")
        circle = (int(x * size), int(y * size), max(1, int(1.5 * radius * size)))
    film = np.clip(film + 0.01 * rng.standard_normal(film.shape), 0, 1)
    if mirrored:
        film = film[:, ::-1]
        circle = (size - 1 - circle[0], *circle[1:]) if circle else None
    return film, circle


def _lesion(
    rng: np.random.Generator,
    row: NDArray[np.float64],
    column: NDArray[np.float64],
    radius: float,
    spiculated: bool,
) -> NDArray[np.float64]:
    distance = np.hypot(row, column)
    if not spiculated:
        return np.asarray(0.28 / (1 + np.exp((distance - radius) * 8 / radius)))
    angle = np.arctan2(row, column)
    spicules = np.zeros_like(distance)
    for direction in rng.uniform(-np.pi, np.pi, rng.integers(*SPICULES)):
        offset = np.abs(np.angle(np.exp(1j * (angle - direction))))
        spicules += np.exp(-((offset * distance / (0.12 * radius)) ** 2)) * (offset < np.pi / 2)
    core = np.exp(-((distance / (0.6 * radius)) ** 2))
    return np.asarray(0.4 * core + 0.3 * np.clip(spicules, 0, 1) * np.exp(-distance / radius))


def _severity(patient: int, side: int) -> str | None:
    group, round_number = patient % 3, patient // 3
    if group == 1 and side == round_number % 2:
        return "B"
    if group == 2 and (side == round_number % 2 or round_number % 2):
        return "M"
    return None


def _unit(noise: NDArray[np.float64]) -> NDArray[np.float64]:
    return np.asarray(noise / noise.std())


def _save_pgm(path: Path, pixels: NDArray[np.float64]) -> None:
    picture = Image.fromarray(np.round(pixels * 255).astype(np.uint8))
    write_atomically(path, lambda temporary: picture.save(temporary, format="PPM"))
