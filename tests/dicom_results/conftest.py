"""A film, a reading and a map whose results are known."""

from pathlib import Path

import numpy as np
import pytest
from dicom_phantoms import phantom_file

from hmc_fast.data import Preprocessing, film_image
from hmc_fast.data.film_image import FilmImage
from hmc_fast.dicom_results.reading import Reading
from hmc_fast.explain.methods import ActivationMap
from hmc_fast.prediction.decision import Decision

PREPROCESSING = Preprocessing(96, 64, native=True)
"""It crops and mirrors, as the trained models do."""


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return phantom_file(tmp_path / "film.dcm", 1)


@pytest.fixture
def film(path: Path) -> FilmImage:
    return film_image(path, PREPROCESSING)


@pytest.fixture
def reading() -> Reading:
    return Reading(
        model="hmc_net_resnet18",
        checkpoint="ab" * 32,
        task="malignant",
        class_names=("rest", "malignant"),
        probabilities=(0.75, 0.25),
        decision=Decision(0.125, "operating point of the checkpoint"),
        rule="v",
    )


@pytest.fixture
def heat() -> ActivationMap:
    values = np.ones((PREPROCESSING.height, PREPROCESSING.width), np.float32)
    return ActivationMap("gradcam", "layer4", 1, values, (12, 8))
