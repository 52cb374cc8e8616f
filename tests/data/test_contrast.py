"""Local contrast equalised, and where it stands among a film's preparations."""

import sys

import numpy as np
import pytest

from hmc_fast import UserError
from hmc_fast.data import Preprocessing
from hmc_fast.data.contrast import equalise


def faint(side: int = 256) -> np.ndarray:
    """A ramp with a disc that is hardly brighter."""
    y, x = np.mgrid[:side, :side]
    film = 0.2 + 0.6 * x / side
    film[np.hypot(y - 60, x - 200) < 12] += 0.04
    return film.astype(np.float32)


def step(film: np.ndarray) -> float:
    """How much brighter the disc is than the ring around it."""
    y, x = np.mgrid[: film.shape[0], : film.shape[1]]
    distance = np.hypot(y - 60, x - 200)
    return float(film[distance < 10].mean() - film[(distance > 14) & (distance < 20)].mean())


def test_faint_structures_stand_out_and_greys_stay_in_range() -> None:
    film = faint()
    result = equalise(film)
    assert result.dtype == np.float32
    assert result.shape == film.shape
    assert result.min() >= 0
    assert result.max() <= 1
    assert step(result) > 1.3 * step(film)


def test_the_slope_is_bounded() -> None:
    noise = np.random.default_rng(0).normal(0.5, 0.01, (256, 256)).astype(np.float32)
    assert noise.std() < equalise(noise).std() < 8 * noise.std()


def test_a_native_film_keeps_its_black_ground_and_its_frame() -> None:
    film = np.pad(faint() * (np.mgrid[:256, :256][1] < 180), ((60, 60), (0, 120)))
    plain, equalised = (
        Preprocessing(384, 256, native=True, clahe=clahe).place(film) for clahe in (False, True)
    )
    assert equalised[1] == plain[1]
    assert not equalised[0].equal(plain[0])
    ground = plain[0] == 0
    edge = ground[:, 1:] & ground[:, :-1]
    assert (equalised[0][:, 1:][edge] < 0.1).all()
    assert equalised[0][:, -20:].eq(0).all()


def test_whole_films_are_equalised_too_and_the_setting_is_kept() -> None:
    settings = Preprocessing(64, 64, clahe=True)
    assert not settings(faint()).equal(Preprocessing(64, 64)(faint()))
    assert Preprocessing.from_json(settings.to_json()) == settings


def test_without_opencv_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "cv2", None)
    with pytest.raises(UserError, match=r"pip install 'hmc-fast\[clahe\]'"):
        equalise(faint())
