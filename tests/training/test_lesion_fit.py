"""The convex fit of a lesion head: examples from circles, scikit-learn's optimum, its scale."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import LogisticRegression

from hmc_fast import UserError
from hmc_fast.data import Film, Finding
from hmc_fast.data.frame import Box, Frame
from hmc_fast.models.lesion_head import LesionHead
from hmc_fast.training.features import FilmFeatures
from hmc_fast.training.lesion_fit import (
    FilmPositions,
    balanced,
    film_positions,
    fit_lesion_head,
    minimise_loss,
)

ROWS, COLUMNS = 20, 12
FRAME = Frame(320, 192, Box(0, 320, 0, 192, mirrored=False), 1.0, 0, 0, 320, 192)


def features(seed: int = 0) -> FilmFeatures:
    """Cells whose features are their row and column; the two right columns are no breast."""
    rows, columns = np.mgrid[:ROWS, :COLUMNS]
    breast = torch.from_numpy(columns < COLUMNS - 2)
    cells = torch.from_numpy(np.stack([rows, columns])).half()
    return FilmFeatures(cells, breast, FRAME, f"{seed:016x}".ljust(64, "0"))


def finding(
    row: float, column: float, radius: int, severity: str = "malignant", kind: str = "CIRC"
) -> Finding:
    """A circle around a place of the image."""
    return Finding(kind, severity, round(column), round(319 - row), radius)  # type: ignore[arg-type]


def case(*findings: Finding) -> Film:
    return Film("mdb001", "p000", Path("mdb001.pgm"), findings)


def positions(*findings: Finding, seed: int = 0) -> FilmPositions:
    result = film_positions(features(), case(*findings), seed)
    assert result is not None
    return result


def places(film: FilmPositions) -> list[tuple[int, int]]:
    return [(int(row), int(column)) for row, column in film.cells]


def test_examples_are_inside_the_circle_or_well_away_from_it() -> None:
    film = positions(finding(103, 71, 30))
    lesion = film.targets[:, 0]
    distance = np.array([np.hypot(r * 16 + 7.5 - 103, c * 16 + 7.5 - 71) for r, c in places(film)])
    assert np.array_equal(lesion, distance <= 30)
    assert lesion.sum() == 9
    assert distance[~lesion].min() > 30 + 32
    assert (~lesion).sum() == 100
    assert all(column < COLUMNS - 2 for _, column in places(film))
    assert len(set(places(film))) == len(film.cells)
    assert film.targets[:, 1].sum() == 9
    assert not film.targets[:, 2].any()


def test_every_lesion_weighs_as_much_as_another_and_as_a_background() -> None:
    film = positions(finding(60, 40, 33), finding(240, 100, 3, "benign", "CALC"))
    small = film.targets[:, 2]
    large = film.targets[:, 0]
    assert small.sum() == 1  # smaller than a cell, and yet an example
    assert large.sum() > 8
    for part in (small, large, ~film.targets[:, 1]):
        assert film.weights[part].sum() == pytest.approx(1)
    assert np.array_equal(film.targets[:, 1], small | large)


def test_a_cell_in_two_circles_is_malignant_where_one_of_them_is() -> None:
    film = positions(finding(60, 40, 20), finding(60, 40, 33, "benign"))
    by_place = {}
    for place, target in zip(places(film), film.targets[:, 0], strict=True):
        assert by_place.setdefault(place, target) == target


@pytest.mark.parametrize(
    "unlocated", [Finding("CALC", "malignant"), Finding("CALC", "benign", 185, 100, 3)]
)
def test_a_film_whose_lesion_cannot_be_located_teaches_nothing(unlocated: Finding) -> None:
    assert film_positions(features(), case(finding(60, 40, 20), unlocated)) is None


def test_background_is_drawn_by_seed_and_film() -> None:
    first, again, other = positions(seed=1), positions(seed=1), positions(seed=2)
    assert places(first) == places(again) != places(other)
    another = film_positions(features(seed=5), case(), 1)
    assert another is not None
    assert places(first) != places(another)


def random_films(count: int, channels: int = 6, seed: int = 0) -> list[FilmPositions]:
    """Films with one lesion each, whose first feature is larger in the lesion."""
    rng = np.random.default_rng(seed)
    films = []
    for film in range(count):
        targets = np.zeros((25, 3), np.bool_)
        targets[:5] = [film % 2 == 0, True, film % 3 == 0]
        cells = 3 + 2 * rng.standard_normal((25, channels))
        cells[:5, 0] += 4 if film % 2 == 0 else 2
        weights = np.concatenate([np.full(5, 1 / 5), np.full(20, 1 / 20)])
        films.append(FilmPositions(torch.from_numpy(cells).half(), targets, weights))
    return films


@pytest.mark.parametrize("penalty", [0.03, 0.3])
def test_the_optimum_is_scikit_learns(penalty: float) -> None:
    rng = np.random.default_rng(0)
    x = rng.standard_normal((300, 8))
    targets = x[:, :3] + rng.standard_normal((300, 3)) > 0.7
    weights = balanced(targets, rng.uniform(0.1, 2, 300))
    slopes, offsets = minimise_loss(torch.from_numpy(x), targets, weights, penalty)
    for output in range(3):
        peer = LogisticRegression(C=1 / penalty, tol=1e-10, max_iter=10_000)
        peer.fit(x, targets[:, output], sample_weight=weights[:, output])
        np.testing.assert_allclose(slopes[:, output], peer.coef_[0], atol=2e-5)
        np.testing.assert_allclose(offsets[output], peer.intercept_[0], atol=2e-5)


def logits(head: LesionHead, films: Sequence[FilmPositions]) -> np.ndarray:
    cells = torch.cat([film.cells for film in films]).float()
    with torch.inference_mode():
        return np.asarray(head.maps(cells[:, :, None, None])[:, :, 0, 0])


def test_standardisation_is_folded_into_the_head() -> None:
    films = random_films(12)
    head = fit_lesion_head(films, 1, 4)
    cells = torch.cat([film.cells for film in films]).double().numpy()
    targets = np.concatenate([film.targets for film in films])
    weights = balanced(targets, np.concatenate([film.weights for film in films]))
    standardised = (cells - cells.mean(0)) / cells.std(0)
    for output in range(3):
        peer = LogisticRegression(C=1 / 0.3, tol=1e-10, max_iter=10_000)
        peer.fit(standardised, targets[:, output], sample_weight=weights[:, output])
        expected = peer.decision_function(standardised)
        np.testing.assert_allclose(logits(head, films)[:, output], expected, atol=1e-3)


def test_two_fits_are_one_and_scale_does_not_matter() -> None:
    films = random_films(10)
    head, again = fit_lesion_head(films, 1, 4), fit_lesion_head(films, 1, 4)
    assert torch.equal(head.maps.weight, again.maps.weight)
    assert torch.equal(head.maps.bias, again.maps.bias)
    shifted = [FilmPositions(f.cells * 4 + 8, f.targets, f.weights) for f in films]
    moved = logits(fit_lesion_head(shifted, 1, 4), shifted)
    np.testing.assert_allclose(moved, logits(head, films), atol=0.02)


@pytest.mark.parametrize("stage", ["C3", "C4"])
def test_a_stage_can_be_left_out(stage: str) -> None:
    films = random_films(8)
    head = fit_lesion_head(films, 1, 4, stages=[stage])
    used = slice(0, 2) if stage == "C3" else slice(2, 6)
    weights = head.maps.weight.detach().clone()
    assert weights[:, used].abs().min() > 0
    weights[:, used] = 0
    assert weights.abs().max() == 0
    alone = [FilmPositions(f.cells[:, used], f.targets, f.weights) for f in films]
    sizes = (1, 0) if stage == "C3" else (0, 4)
    expected = logits(fit_lesion_head(alone, *sizes), alone)
    np.testing.assert_allclose(logits(head, films), expected, atol=1e-5)


def test_a_constant_channel_and_an_absent_kind_are_left_at_zero() -> None:
    films = random_films(8)
    for film in films:
        film.cells[:, 5] = 1.5
        film.targets[:, 2] = False
    head = fit_lesion_head(films, 1, 4)
    assert head.maps.weight[:, 5].abs().max() == 0
    assert head.maps.weight[2].abs().max() == head.maps.bias[2].abs() == 0
    assert head.maps.weight[0].abs().max() > 0
    for film in films:
        film.targets[:, 0] = False
    with pytest.raises(UserError, match="no film of the training set has a malignant lesion"):
        fit_lesion_head(films, 1, 4)
