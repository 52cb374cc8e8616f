"""The breast's box and side, on phantoms and real films; lesion masks go the film's way."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hmc_fast import UserError
from hmc_fast.data import Film, FilmCache, Finding, Preprocessing, read_mias, read_pixels
from hmc_fast.data.breast import breast_box, breast_mask, lies_right
from hmc_fast.data.dataset import LesionDataset
from hmc_fast.data.lesions import lesion_mask


def drawn(rows: int = 200, columns: int = 160, right: bool = False) -> np.ndarray:
    """A half ellipse at the left border, a bright label that touches nothing, noise."""
    y, x = np.mgrid[:rows, :columns]
    inside = ((y - 90) / 60) ** 2 + (x / 70) ** 2 < 1
    pixels = 0.02 + 0.6 * inside + 0.01 * np.random.default_rng(0).random((rows, columns))
    pixels[5:15, 130:150] = 1.0
    return np.ascontiguousarray(pixels[:, ::-1] if right else pixels).astype(np.float32)


@pytest.mark.parametrize("right", [False, True])
def test_the_box_holds_the_breast_and_not_the_label(right: bool) -> None:
    mask = breast_mask(drawn(right=right))
    assert lies_right(mask) == right
    top, bottom, left, rightmost = breast_box(mask)
    assert 20 <= top <= 40
    assert 140 <= bottom <= 160
    assert (160 - rightmost if right else left) == 0
    assert 60 <= rightmost - left <= 85


def test_a_film_without_a_breast_is_left_whole() -> None:
    for pixels in (np.zeros((64, 48), np.float32), np.full((64, 48), 0.5, np.float32)):
        frame = Preprocessing(64, 64, crop_breast=True).frame(pixels)
        assert frame.box == (0, 64, 0, 48, False)


@pytest.mark.parametrize("shape", [(1, 1), (1, 900), (900, 1)])
def test_a_film_of_one_pixel_or_one_line(shape: tuple[int, int]) -> None:
    for settings in ({"face_left": True}, {"crop_breast": True, "face_left": True}):
        image = Preprocessing(32, 64, **settings)(np.full(shape, 0.5, np.float32))
        assert image.shape == (3, 32, 64)
        assert image.isfinite().all()


def test_facing_left_makes_mirrored_films_equal() -> None:
    preprocessing = Preprocessing(64, 64, crop_breast=True, face_left=True)
    pixels = drawn()
    torch.testing.assert_close(preprocessing(pixels), preprocessing(pixels[:, ::-1]))
    plain = Preprocessing(64, 64)
    assert not torch.allclose(plain(pixels), plain(np.ascontiguousarray(pixels[:, ::-1])))


def test_settings_are_kept_and_contradictions_refused() -> None:
    for settings in ({"crop_breast": True, "face_left": True}, {"average_flips": True}):
        preprocessing = Preprocessing(64, 96, **settings)
        assert Preprocessing.from_json(preprocessing.to_json()) == preprocessing
    old = {"height": 64, "width": 64, "mean": [0, 0, 0], "std": [1, 1, 1]}
    assert Preprocessing.from_json(old).crop_breast is False
    with pytest.raises(KeyError):
        Preprocessing.from_json({**old, "sharpen": True})
    with pytest.raises(UserError, match="cannot average over flips"):
        Preprocessing(64, 64, face_left=True, average_flips=True)


def test_a_lesion_stays_on_its_film_through_crop_mirror_and_augmentation(tmp_path: Path) -> None:
    from PIL import Image

    pixels = drawn(right=True)
    y, x = np.ogrid[:200, :160]
    pixels[(y - 90) ** 2 + (x - 120) ** 2 <= 12**2] = 1.0
    Image.fromarray((pixels * 255).astype(np.uint8)).save(tmp_path / "mdb001.png")
    film = Film(
        "mdb001",
        "p000",
        tmp_path / "mdb001.png",
        (Finding("MISC", "malignant", 120, 199 - 90, 12), Finding("MISC", "benign")),
    )
    mask = lesion_mask(film, (200, 160))
    assert mask.sum() == pytest.approx(np.pi * 12**2, rel=0.03)
    cache = FilmCache(Preprocessing(96, 96, crop_breast=True, face_left=True))
    for seed in range(5):
        rotated = replace(film, rotation=30.0 * seed)
        dataset = LesionDataset([rotated], [1], cache, augmentation_seed=seed)
        image, label, lesion = dataset[0]
        bright = image[0] > 1.9
        inside = lesion[0] > 0.5
        assert label == 1
        assert (bright & inside).sum() > 0.8 * inside.sum() > 0


@pytest.mark.real_data
def test_real_films_face_the_side_that_mias_numbers_them_by(real_data: Path) -> None:
    films = read_mias(real_data / "mias")[::4] + read_mias(real_data / "mias")[1::8]
    right = []
    for film in films:
        pixels = read_pixels(film.path)
        mask = breast_mask(pixels)
        right.append(lies_right(mask) == (int(film.film_id[3:]) % 2 == 1))
        top, bottom, left, rightmost = breast_box(mask)
        for finding in film.findings:
            if finding.x is not None and finding.y is not None:
                assert left <= finding.x < rightmost, film.film_id
                assert top <= pixels.shape[0] - 1 - finding.y < bottom, film.film_id
    assert np.mean(right) > 0.97
