"""One way from a film file to the network's image, and every error names the file."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from hmc_fast import UserError
from hmc_fast.data import Film, FilmCache, Preprocessing, film_image, read_pixels


def test_it_is_what_the_preprocessing_makes_of_the_pixels(phantoms: list[Film]) -> None:
    preprocessing = Preprocessing(96, 64, crop_breast=True, face_left=True)
    path = phantoms[0].path
    pixels, image, frame = film_image(path, preprocessing)
    assert np.array_equal(pixels, read_pixels(path))
    placed, where = preprocessing.place(pixels)
    assert torch.equal(image, placed)
    assert frame == where
    assert torch.equal(FilmCache(preprocessing).image(path), image)


def test_a_film_that_cannot_be_placed_is_named(tmp_path: Path) -> None:
    path = tmp_path / "grey.png"
    Image.fromarray(np.full((80, 60), 9, np.uint8)).save(path)
    with pytest.raises(UserError, match=r"grey\.png: shows no picture"):
        film_image(path, Preprocessing(96, 64, native=True))
