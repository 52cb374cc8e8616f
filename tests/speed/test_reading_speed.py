"""CPU-side micro-benchmarks of the input path: ``pytest --benchmark-only`` for steady figures."""

from pathlib import Path

import pytest
from pytest_benchmark.fixture import BenchmarkFixture

from hmc_fast.data import Film, FilmCache, FilmDataset, Preprocessing, read_pixels


def test_reading_a_phantom(benchmark: BenchmarkFixture, phantoms: list[Film]) -> None:
    film = benchmark(read_pixels, phantoms[0].path)
    assert film.shape == (64, 64)


@pytest.mark.real_data
@pytest.mark.parametrize("name", ["mias/mdb001.pgm", "dicom/malign_P00820_LCC_rle.dcm"])
def test_reading_a_real_film(benchmark: BenchmarkFixture, real_data: Path, name: str) -> None:
    film = benchmark.pedantic(read_pixels, (real_data / name,), rounds=5)
    assert film.ndim == 2
    assert film.min() < film.max()


def test_preprocessing_a_film(benchmark: BenchmarkFixture, phantoms: list[Film]) -> None:
    film = read_pixels(phantoms[0].path)
    preprocessing = Preprocessing.square(224)
    image = benchmark(preprocessing, film)
    assert tuple(image.shape[-2:]) == (224, 224)


def test_a_cached_film_of_a_dataset(benchmark: BenchmarkFixture, phantoms: list[Film]) -> None:
    cache = FilmCache(Preprocessing.square(224))
    dataset = FilmDataset(phantoms[:1], [0], cache)
    image, label = benchmark(dataset.__getitem__, 0)
    assert image.shape == (3, 224, 224)
    assert label == 0


def test_reading_and_preprocessing_a_film(
    benchmark: BenchmarkFixture, phantom_folder: Path
) -> None:
    preprocessing = Preprocessing.square(224)
    image = benchmark(lambda: preprocessing(read_pixels(phantom_folder / "mdb001.pgm")))
    assert image.shape == (3, 224, 224)
