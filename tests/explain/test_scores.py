"""The localisation scores, against hand-made maps and plain definitions."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from torchvision.transforms.functional import gaussian_blur

from hmc_fast.explain.scores import (
    area_under,
    deletion_images,
    energy_in_lesion,
    insertion_images,
    pointing_game,
    rank_correlation,
)

LESION = np.zeros((4, 4), bool)
LESION[1:3, 1:3] = True


def peak(row: int, column: int) -> np.ndarray:
    values = np.zeros((4, 4), np.float32)
    values[row, column] = 1
    return values


def test_pointing_game() -> None:
    assert pointing_game(peak(1, 2), LESION) == 1
    assert pointing_game(peak(0, 2), LESION) == 0
    assert pointing_game(peak(1, 2) + peak(0, 0), LESION) == 0.5
    assert pointing_game(np.ones((4, 4), np.float32), LESION) == 0
    assert pointing_game(np.zeros((4, 4), np.float32), LESION) == 0


def test_energy_in_lesion() -> None:
    assert energy_in_lesion(peak(1, 1), LESION) == 1
    assert energy_in_lesion(np.ones((4, 4), np.float32), LESION) == 0.25
    assert energy_in_lesion(np.zeros((4, 4), np.float32), LESION) == 0
    assert energy_in_lesion(3 * peak(1, 1) + peak(0, 0), LESION) == pytest.approx(0.75)


@given(arrays(np.float32, (6, 5), elements=st.floats(0, 1, width=32)), st.integers(2, 9))
@settings(max_examples=40, deadline=None)
def test_deletion_takes_the_most_salient_pixels_first(values: np.ndarray, steps: int) -> None:
    image = torch.ones(3, 6, 5)
    images = deletion_images(image, values, torch.zeros(3, 1, 1), steps)
    assert images.shape == (steps + 1, 3, 6, 5)
    assert torch.equal(images[0], image)
    assert not images[-1].any()
    for step in range(steps + 1):
        gone = (images[step, 0] == 0).numpy()
        assert gone.sum() == pytest.approx(30 * step / steps, abs=0.51)
        if gone.any() and not gone.all():
            assert values[gone].min() >= values[~gone].max()
        assert torch.equal(images[step, 0], images[step, 2])


def test_insertion_starts_blurred_and_ends_whole() -> None:
    image = torch.rand(3, 224, 224)
    images = insertion_images(image, np.random.default_rng(0).random((224, 224)), 4)
    torch.testing.assert_close(images[0], gaussian_blur(image, [11, 11], [5.0, 5.0]))
    assert torch.equal(images[-1], image)
    assert (images[2] == image).float().mean() == pytest.approx(0.5, abs=0.01)


def test_areas_and_correlations() -> None:
    assert area_under(np.array([1.0, 0.5, 0.0])) == pytest.approx(0.5)
    assert area_under(np.array([1.0, 0.0, 0.0, 0.0, 0.0])) == pytest.approx(0.125)
    ramp = np.arange(16, dtype=np.float32).reshape(4, 4)
    assert rank_correlation(ramp, ramp**3) == pytest.approx(1)
    assert rank_correlation(ramp, -ramp) == pytest.approx(-1)
    assert rank_correlation(ramp, np.ones_like(ramp)) is None
