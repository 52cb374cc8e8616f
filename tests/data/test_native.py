"""The breast alone at native scale, and circles on their way into its image and back."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hmc_fast import UserError
from hmc_fast.data import Preprocessing, read_mias, read_pixels
from hmc_fast.data.frame import Box, Frame
from hmc_fast.data.mias import side_of
from hmc_fast.data.preprocessing import native_width


def drawn(rows: int = 400, columns: int = 320, right: bool = False) -> np.ndarray:
    """A half ellipse at the left border with a bright disc, and a label that touches nothing."""
    y, x = np.mgrid[:rows, :columns] * 200 / rows
    breast = ((y - 90) / 60) ** 2 + (x / 70) ** 2 < 1
    film = 0.02 + breast * (0.5 + 0.3 * np.hypot(y - 90, x - 30) / 100)
    film[np.hypot(y - 100, x - 40) < 6] = 0.95
    film[10:30, 260:300] = 1.0
    return np.ascontiguousarray(film[:, ::-1] if right else film).astype(np.float32)


CIRCLE = (80, 400 - 1 - 200, 12)
"""The disc as MIAS gives it: x, y from below, radius."""


def native(height: int, width: int | None = None) -> Preprocessing:
    return Preprocessing(height, width or native_width(height), native=True)


@pytest.mark.parametrize("right", [False, True])
def test_the_image_is_the_breast_in_its_own_greys_on_black(right: bool) -> None:
    image, frame = native(416).place(drawn(416, 320, right))
    assert frame.breast_found
    assert frame.box.mirrored == right
    assert frame.scale == 1
    assert image.shape == (1, 416, 288)
    rows, columns = frame.box.bottom - frame.box.top, frame.box.right - frame.box.left
    assert 250 <= rows <= 288
    assert 128 <= columns <= 192
    assert image.min() == 0
    assert image.max() == 1
    assert image[0, rows:].eq(0).all()
    assert image[0, :, columns:].eq(0).all()
    shown = image[0, :rows, :columns]
    breast = shown[shown > 0]
    assert 0.3 < breast.numel() / shown.numel() < 0.95
    assert (breast == 1).float().mean() == pytest.approx(0.005, abs=0.02)


def test_mirrored_films_give_one_image() -> None:
    left, right = (native(384).place(drawn(right=right))[0] for right in (False, True))
    torch.testing.assert_close(left, right, atol=0.02, rtol=0)


PREPARED = {
    "native": native(416),
    "small": native(96, 64),
    "large": native(512),
    "whole": Preprocessing(256, 256),
    "tall": Preprocessing(320, 96, crop_breast=True),
    "facing left": Preprocessing(224, 224, crop_breast=True, face_left=True),
}


@pytest.mark.parametrize("right", [False, True])
@pytest.mark.parametrize("name", PREPARED)
def test_the_circle_lies_on_the_disc(right: bool, name: str) -> None:
    image, frame = PREPARED[name].place(drawn(right=right))
    x, y, radius = CIRCLE
    row, column, radius = frame.circle(319 - x if right else x, y, radius)
    rows, columns = np.mgrid[: frame.height, : frame.width]
    distance = np.hypot(rows - row, columns - column)
    inside = distance < max(radius - 2, 1)
    around = (distance > radius + 2) & (distance < 1.6 * radius + 3)
    assert image[0].numpy()[inside].min() > 0.9
    assert image[0].numpy()[around].mean() < 0.85
    assert tuple(image.shape[1:]) == (frame.height, frame.width)


@given(
    row=st.floats(0, 399),
    column=st.floats(0, 319),
    mirrored=st.booleans(),
    scale=st.floats(0.1, 4),
    above=st.floats(0, 50),
)
def test_places_go_there_and_back(
    row: float, column: float, mirrored: bool, scale: float, above: float
) -> None:
    frame = Frame(400, 320, Box(20, 380, 3, 301, mirrored), scale, above, 7.0, 512, 320)
    assert frame.to_film(*frame.to_image(row, column)) == pytest.approx((row, column), abs=1e-6)
    assert Frame.from_json(frame.to_json()) == frame


def test_native_pixels_are_not_resampled() -> None:
    film = drawn(416, 320)
    image, frame = native(416).place(film)
    shown = film[frame.box.top : frame.box.bottom, frame.box.left : frame.box.right]
    grey = image[0, : shown.shape[0], : shown.shape[1]].numpy()
    between = (grey > 0) & (grey < 1)
    slope, offset = np.polyfit(shown[between], grey[between], 1)
    np.testing.assert_allclose(grey[between], slope * shown[between] + offset, atol=1e-5)


def test_a_black_film_is_refused_and_a_film_without_a_breast_shown_whole() -> None:
    for grey in (0.0, 0.5):
        with pytest.raises(UserError, match="shows no breast; leave it out"):
            native(64, 64)(np.full((64, 48), grey, np.float32))
    speck = np.zeros((64, 48), np.float32)
    speck[30, 20] = 1.0
    image, frame = native(64, 64).place(speck)
    assert not frame.breast_found
    assert frame.box == Box(0, 64, 0, 48, mirrored=False)
    assert image.shape == (1, 64, 64)
    assert image[0, 30, 20] == 1


@pytest.mark.real_data
def test_real_breasts_are_framed_with_their_lesions(real_data: Path) -> None:
    lesions = 0
    annotated = [film for film in read_mias(real_data / "mias") if film.findings]
    for film in annotated[::12]:
        image, frame = native(1024).place(read_pixels(film.path))
        assert frame.breast_found
        assert frame.box.mirrored == (side_of(film.film_id) == "R"), film.film_id
        assert frame.scale > 0.85
        assert 0.25 < (image > 0).float().mean() < 0.95
        for finding in film.findings:
            if finding.x is not None and finding.y is not None and finding.radius is not None:
                row, column, radius = frame.circle(finding.x, finding.y, finding.radius)
                rows, columns = np.mgrid[: frame.height, : frame.width]
                inside = np.hypot(rows - row, columns - column) <= radius
                assert (image[0].numpy()[inside] > 0).mean() > 0.5, film.film_id
                lesions += 1
    assert lesions > 3


def test_settings_are_kept_and_bad_ones_refused() -> None:
    for preprocessing in PREPARED.values():
        assert Preprocessing.from_json(preprocessing.to_json()) == preprocessing
    with pytest.raises(UserError, match="cannot average over flips"):
        Preprocessing(64, 64, native=True, average_flips=True)
    with pytest.raises(UserError, match="multiples of 32"):
        native(1000, 640)


def test_another_height_keeps_the_proportions() -> None:
    assert [native_width(height) for height in (1024, 512, 256, 224)] == [640, 320, 160, 160]
    assert native(1024).at_height(512) == native(512)
    assert native(960, 544).at_height(480) == native(480, 288)
    assert Preprocessing.square(224).at_height(96) == Preprocessing.square(96)
