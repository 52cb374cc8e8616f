"""The breast alone at native resolution, and circles on their way into its image and back."""

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hmc_fast import UserError
from hmc_fast.data import read_mias, read_pixels
from hmc_fast.data.mias import side_of
from hmc_fast.data.native import NativeFrame, NativePreprocessing


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


@pytest.mark.parametrize("right", [False, True])
def test_the_image_is_the_breast_in_its_own_greys_on_black(right: bool) -> None:
    image, frame = NativePreprocessing(film_side=416)(drawn(416, 320, right))
    assert frame.breast_found
    assert frame.mirrored == right
    assert image.shape == (1, frame.height, frame.width)
    assert frame.height % 32 == frame.width % 32 == 0
    assert 250 <= frame.height <= 288
    assert 128 <= frame.width <= 192
    assert image.min() == 0
    assert image.max() == 1
    assert image[0, -4:].eq(0).all()
    breast = image[image > 0]
    assert 0.3 < breast.numel() / image.numel() < 0.95
    assert (breast == 1).float().mean() == pytest.approx(0.005, abs=0.02)


def test_mirrored_films_give_one_image() -> None:
    preprocessing = NativePreprocessing(film_side=384)
    left, right = (preprocessing(drawn(right=right)).image for right in (False, True))
    torch.testing.assert_close(left, right, atol=0.02, rtol=0)


@pytest.mark.parametrize("right", [False, True])
@pytest.mark.parametrize("size", [(None, None), (96, 64), (512, 320)])
@pytest.mark.parametrize("film_side", [256, 416])
def test_the_circle_lies_on_the_disc(
    right: bool, size: tuple[int | None, int | None], film_side: int
) -> None:
    image, frame = NativePreprocessing(film_side, *size)(drawn(right=right))
    x, y, radius = CIRCLE
    row, column, radius = frame.circle(319 - x if right else x, y, radius)
    rows, columns = np.mgrid[: frame.height, : frame.width]
    inside = np.hypot(rows - row, columns - column) < radius - 1
    assert image[0].numpy()[inside].min() > 0.9
    if size[0] is not None:
        assert (frame.height, frame.width) == size
        assert max(frame.content[0] / size[0], frame.content[1] / size[1]) <= 1


@given(
    row=st.floats(0, 399),
    column=st.floats(0, 319),
    mirrored=st.booleans(),
    scale=st.floats(0.1, 4),
)
def test_places_go_there_and_back(row: float, column: float, mirrored: bool, scale: float) -> None:
    frame = NativeFrame(400, 320, 20, 380, 3, 301, mirrored, scale, 0, 0, breast_found=True)
    assert frame.to_film(*frame.to_image(row, column)) == pytest.approx((row, column), abs=1e-6)
    assert NativeFrame(**frame.to_json()) == frame


def test_native_pixels_are_not_resampled() -> None:
    film = drawn(416, 320)
    image, frame = NativePreprocessing(film_side=416)(film)
    shown = film[frame.top : frame.bottom, frame.left : frame.right]
    grey = image[0, : frame.content[0], : frame.content[1]].numpy()
    between = (grey > 0) & (grey < 1)
    slope, offset = np.polyfit(shown[between], grey[between], 1)
    np.testing.assert_allclose(grey[between], slope * shown[between] + offset, atol=1e-5)


def test_a_black_film_is_refused_and_a_film_without_a_breast_shown_whole() -> None:
    preprocessing = NativePreprocessing(film_side=64)
    for grey in (0.0, 0.5):
        with pytest.raises(UserError, match="shows no breast; leave it out"):
            preprocessing(np.full((64, 48), grey, np.float32))
    speck = np.zeros((64, 48), np.float32)
    speck[30, 20] = 1.0
    image, frame = preprocessing(speck)
    assert not frame.breast_found
    assert not frame.mirrored
    assert frame.content == (64, 48)
    assert image.shape == (1, 64, 64)
    assert image[0, 30, 20] == 1


@pytest.mark.real_data
def test_real_breasts_are_framed_with_their_lesions(real_data: Path) -> None:
    preprocessing = NativePreprocessing()
    lesions = 0
    annotated = [film for film in read_mias(real_data / "mias") if film.findings]
    for film in annotated[::12]:
        image, frame = preprocessing(read_pixels(film.path))
        assert frame.breast_found
        assert frame.mirrored == (side_of(film.film_id) == "R"), film.film_id
        assert frame.scale == 1
        assert 0.35 < (image > 0).float().mean() < 0.95
        for finding in film.findings:
            if finding.x is not None and finding.y is not None and finding.radius is not None:
                row, column, radius = frame.circle(finding.x, finding.y, finding.radius)
                rows, columns = np.mgrid[: frame.height, : frame.width]
                inside = np.hypot(rows - row, columns - column) <= radius
                assert (image[0].numpy()[inside] > 0).mean() > 0.5, film.film_id
                lesions += 1
    assert lesions > 3


def test_settings_are_kept_and_bad_ones_refused() -> None:
    for preprocessing in (NativePreprocessing(), NativePreprocessing(512, 960, 544)):
        assert NativePreprocessing.from_json(preprocessing.to_json()) == preprocessing
    with pytest.raises(UserError, match="both height and width"):
        NativePreprocessing(height=64)
    for sides in ((100, None, None), (512, 540, 960), (512, 0, 32)):
        with pytest.raises(UserError, match="multiples of 32"):
            NativePreprocessing(*sides)
