"""Localisation over films: unseen patients only, known answers, the file and its schema."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch

from hmc_fast import UserError, load_model
from hmc_fast.checkpoint import save_checkpoint
from hmc_fast.data import Film, FilmCache
from hmc_fast.evaluation.localisation import read_localisation
from hmc_fast.explain import ActivationMap, film_scores
from hmc_fast.explain.film_scores import with_shuffled_weights
from hmc_fast.explain.localisation import (
    LocalisationSettings,
    measure_localisation,
    write_localisation,
)
from hmc_fast.models import FilmModel

QUICK = LocalisationSettings(("gradcam", "scale"), steps=4, sanity_films=2, max_films=3)


@pytest.fixture(scope="module")
def result(checkpoint: Path, phantoms: list[Film]) -> dict:
    return measure_localisation([checkpoint], phantoms, QUICK)


def test_the_file_reads_back(result: dict, tmp_path: Path) -> None:
    path = write_localisation(tmp_path, result)
    assert read_localisation(path) == result
    values = json.loads(path.read_text())
    assert values["model"] == "hmc_net_resnet18"
    assert values["films"] == 3
    assert sum(values["films_by_severity"].values()) == 3
    assert set(values["methods"]) == {"gradcam", "scale"}
    for method in values["methods"].values():
        assert method["films"] == 3
        assert len(method["deletion_curve"]) == len(values["settings"]["shares"]) == 5
        assert method["sanity"]["films"] == 2
        for metric in ("pointing_game", "energy_in_lesion", "deletion_auc", "insertion_auc"):
            interval = method[metric]
            assert 0 <= interval["low"] <= interval["value"] <= interval["high"] <= 1
    # Deleting nothing and inserting everything are both the film itself.
    gradcam = values["methods"]["gradcam"]
    assert gradcam["deletion_curve"][0] == pytest.approx(gradcam["insertion_curve"][-1])
    assert gradcam["deletion_curve"][-1] == pytest.approx(
        values["methods"]["scale"]["deletion_curve"][-1]
    )
    assert values["baselines"]["uniform"]["pointing_game"]["value"] == 0
    for damage in ({"schema": 2}, {"kind": "x"}):
        path.write_text(json.dumps({**values, **damage}))
        with pytest.raises(UserError, match="localisation.json"):
            read_localisation(path)


def test_known_maps_get_known_scores(
    checkpoint: Path, phantoms: list[Film], monkeypatch: pytest.MonkeyPatch
) -> None:
    def brightest_pixel(
        model: FilmModel, image: torch.Tensor, method: str, class_index: int, **_: object
    ) -> ActivationMap:
        assert class_index == 1
        channel = image[0].numpy()
        return ActivationMap(method, "x", 1, (channel == channel.max()).astype(np.float32), (1, 1))

    monkeypatch.setattr(film_scores, "activation_map", brightest_pixel)
    settings = LocalisationSettings(("gradcam",), steps=2, sanity_films=2)
    malignant = [film for film in phantoms if film.severity != "benign"]
    scored = measure_localisation([checkpoint], malignant, settings)
    method = scored["methods"]["gradcam"]
    assert method["pointing_game"]["value"] == 1
    assert method["energy_in_lesion"]["value"] == 1
    assert method["sanity"]["rank_correlation"]["value"] == pytest.approx(1)
    assert method["sanity"]["changed"] is False
    assert scored["baselines"]["brightness"]["pointing_game"]["value"] == 1


def test_patients_seen_in_training_are_left_out(
    checkpoint: Path, phantoms: list[Film], tmp_path: Path
) -> None:
    model, metadata = load_model(checkpoint)
    cache = FilmCache(metadata.preprocessing)
    annotated = [film for film in phantoms if film.severity == "malignant"]
    seen = annotated[0]
    partner = [film for film in phantoms if film.patient_id == seen.patient_id]
    metadata.training_films[seen.film_id] = cache.digest(seen.path)
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, model, metadata)
    settings = LocalisationSettings(("scale",), steps=2, sanity_films=0)
    scored = measure_localisation([path], annotated + partner, settings)
    assert seen.patient_id not in {row["patient"] for row in scored["per_film"]}
    with pytest.raises(UserError, match="no film with a lesion circle is of a patient whom"):
        measure_localisation([path], partner, settings)


def test_shuffling_keeps_the_values_and_changes_the_map(model: FilmModel) -> None:
    shuffled = with_shuffled_weights(model, seed=0)
    again = with_shuffled_weights(model, seed=0)
    for (name, before), after, repeated in zip(
        model.named_parameters(), shuffled.parameters(), again.parameters(), strict=True
    ):
        assert torch.equal(before.flatten().sort().values, after.flatten().sort().values), name
        assert torch.equal(after, repeated)
    assert not torch.equal(model.conv1.weight, shuffled.conv1.weight)


def test_checkpoints_of_two_models_and_wrong_settings(
    checkpoint: Path, phantoms: list[Film], tmp_path: Path
) -> None:
    from hmc_fast import create_model

    from .conftest import SIZE, saved

    other = saved(tmp_path / "other.safetensors", create_model("resnet18"), SIZE)
    with pytest.raises(UserError, match="is of resnet18, task malignant, but"):
        measure_localisation([checkpoint, other], phantoms, QUICK)
    with pytest.raises(UserError, match="steps: 1 is too few"):
        LocalisationSettings(steps=1)
    with pytest.raises(UserError, match="unknown method"):
        LocalisationSettings(methods=("x",))
