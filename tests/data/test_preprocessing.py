"""Preprocessing, phantoms and the reproducible dataset."""

from pathlib import Path

import numpy as np
import pytest
import torch

from hmc_fast import UserError
from hmc_fast.data import Film, FilmCache, FilmDataset, Preprocessing, read_pixels, write_phantoms


def test_a_film_is_centred_on_a_black_square() -> None:
    film = np.ones((64, 32), np.float32)
    image = Preprocessing.square(64).place(film)[0]
    assert image.shape == (1, 64, 64)
    assert image[0, :, 16:48].eq(1).all()
    assert image[0, :, :16].eq(0).all()
    assert image[0, :, 48:].eq(0).all()


def test_three_normalised_channels() -> None:
    image = Preprocessing.square(32)(np.full((32, 32), 0.5, np.float32))
    assert image.shape == (3, 32, 32)
    expected = (0.5 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    torch.testing.assert_close(image[:, 5, 7], expected)


@pytest.mark.parametrize("size", [0, 16, 100, -32, 225])
def test_sizes_must_be_multiples_of_32(size: int) -> None:
    with pytest.raises(UserError, match="multiples of 32"):
        Preprocessing.square(size)


def test_json_round_trip() -> None:
    preprocessing = Preprocessing(64, 96, mean=(0.1, 0.2, 0.3))
    assert Preprocessing.from_json(preprocessing.to_json()) == preprocessing


def test_phantoms_repeat_with_the_seed_and_need_an_empty_folder(tmp_path: Path) -> None:
    for name, seed in (("a", 0), ("b", 0), ("c", 1)):
        write_phantoms(tmp_path / name, 3, 64, seed)
    a, b, c = ([p.read_bytes() for p in sorted((tmp_path / n).iterdir())] for n in "abc")
    assert a == b != c
    with pytest.raises(UserError, match="is not empty"):
        write_phantoms(tmp_path / "a", 3, 64)


def test_phantom_lesions_are_where_info_txt_says(phantoms: list[Film]) -> None:
    for film in phantoms:
        pixels = read_pixels(film.path)
        for finding in film.findings:
            assert finding.x is not None
            row = pixels.shape[0] - 1 - finding.y
            near = pixels[max(0, row - 2) : row + 3, max(0, finding.x - 2) : finding.x + 3]
            assert near.mean() > np.median(pixels[pixels > 0.2]) * 1.1


def test_augmentation_depends_on_seed_and_index_alone(phantoms: list[Film]) -> None:
    cache = FilmCache(Preprocessing.square(64))
    labels = [0] * len(phantoms)
    plain, first, again, other = (
        FilmDataset(phantoms, labels, cache, seed) for seed in (None, 5, 5, 6)
    )
    torch.manual_seed(0)
    expected = first[3][0]
    torch.manual_seed(1)
    before = torch.get_rng_state()
    assert torch.equal(again[3][0], expected)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(other[3][0], expected)
    assert not torch.equal(plain[3][0], expected)
