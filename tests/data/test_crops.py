"""Crops around lesions, and of breasts without any."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hmc_fast.data import Film, FilmCache, Finding, Preprocessing, read_mias, read_pixels
from hmc_fast.data.breast import breast_mask
from hmc_fast.data.dataset import CropDataset
from hmc_fast.data.lesions import crop_box, lesion_mask


def film(*findings: Finding, name: str = "mdb001") -> Film:
    return Film(name, "p000", Path(f"{name}.pgm"), findings)


@pytest.mark.parametrize(
    ("x", "y", "radius"), [(60, 40, 9), (0, 0, 20), (99, 119, 3), (50, 60, 90)]
)
def test_the_crop_is_a_square_in_the_film_that_holds_the_lesion(
    x: int, y: int, radius: int
) -> None:
    pixels = np.zeros((120, 100), np.float32)
    found = film(Finding("ASYM", "benign"), Finding("CIRC", "malignant", x, y, radius))
    box = crop_box(found, pixels, mirrored=True)
    side = box.bottom - box.top
    assert side == box.right - box.left == min(max(4 * radius, 12), 100)
    assert 0 <= box.top < box.bottom <= 120
    assert 0 <= box.left < box.right <= 100
    assert box.mirrored
    mask = lesion_mask(found, pixels.shape)
    if 4 * radius <= 100:
        inside = mask[box.top : box.bottom, box.left : box.right]
        assert inside.sum() == mask.sum()


def test_a_film_without_a_circle_is_cropped_in_the_breast() -> None:
    pixels = np.zeros((160, 160), np.float32)
    pixels[20:140, :80] = 0.8
    boxes = {crop_box(film(name=f"mdb{i:03d}"), pixels, mirrored=False) for i in range(30)}
    assert len(boxes) > 20
    for box in boxes:
        assert box.bottom - box.top == 40
        assert breast_mask(pixels)[box.top : box.bottom, box.left : box.right].any()
    again = crop_box(film(name="mdb003"), pixels, mirrored=False)
    assert again == crop_box(film(name="mdb003"), pixels, mirrored=False)
    assert again in boxes


def test_crops_enlarge_the_lesion(phantoms: list[Film]) -> None:
    cache = FilmCache(Preprocessing.square(64))
    for found in phantoms:
        if found.severity == "malignant":
            pixels = read_pixels(found.path)
            crop = cache.crop(found)
            assert crop.shape == (1, 64, 64)
            assert crop.mean() > cache.image(found.path).mean()
            assert crop.max() > 0.9 * pixels.max()
    dataset = CropDataset(phantoms[:2], [0, 1], cache)
    image, label = dataset[1]
    assert label == 1
    torch.testing.assert_close(image, cache.preprocessing.normalise(cache.crop(phantoms[1])))


@pytest.mark.real_data
def test_crops_of_real_films_hold_their_lesions(real_data: Path) -> None:
    films = [c for c in read_mias(real_data / "mias") if any(f.radius for f in c.findings)]
    for found in films[::6]:
        pixels = read_pixels(found.path)
        box = crop_box(found, pixels, mirrored=False)
        first = next(f for f in found.findings if f.radius)
        mask = lesion_mask(replace(found, findings=(first,)), pixels.shape)
        inside = mask[box.top : box.bottom, box.left : box.right].sum()
        assert inside > 0.9 * mask.sum()
