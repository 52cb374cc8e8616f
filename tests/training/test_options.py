"""Options of training that change what is learnt or predicted, and weights by trunk."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from hmc_fast import UserError, create_model, load_model
from hmc_fast.cli.training_options import trunk_weights
from hmc_fast.data import Film, FilmCache, FilmDataset, Preprocessing
from hmc_fast.data.dataset import CropDataset
from hmc_fast.evaluation import film_logits, predict_logits, read_predictions
from hmc_fast.study import run_cross_validation
from hmc_fast.training import TrainingConfig
from hmc_fast.training.lightning import lesion_loss


def test_the_lesion_loss_falls_as_attention_moves_into_the_circle() -> None:
    lesions = torch.zeros(2, 1, 64, 64)
    lesions[0, 0, :32, :32] = 1
    features = nn.Parameter(torch.zeros(2, 3, 4, 4))
    classifier = torch.tensor([[1.0, 0.0, -1.0], [-1.0, 0.0, 1.0]])
    labels = torch.tensor([1, 0])
    loss = lesion_loss(features, classifier, labels, lesions)
    assert loss.item() == pytest.approx(-torch.tensor(4 / 16).log().item())
    loss.backward()
    assert features.grad is not None
    assert not features.grad[1].any()
    assert (features.grad[0, 2, :2, :2] < 0).all()
    assert (features.grad[0, 2, 2:, 2:] > 0).all()
    moved = torch.zeros(2, 3, 4, 4)
    moved[0, 2, :2, :2] = 50
    assert lesion_loss(moved, classifier, labels, lesions).item() == pytest.approx(0, abs=1e-5)
    nowhere = lesion_loss(features, classifier, labels, torch.zeros_like(lesions))
    assert nowhere.item() == 0


@pytest.mark.parametrize("value", [float("inf"), float("nan")])
@pytest.mark.parametrize("name", ["learning_rate", "lesion_weight", "weight_decay", "dropout"])
def test_settings_are_finite(name: str, value: float) -> None:
    with pytest.raises(UserError, match=f"{name.replace('_', ' ')} is {value}, needs to be"):
        TrainingConfig(**{name: value})  # type: ignore[arg-type]  # one of the floats


def test_more_devices_than_there_are_is_one_line(
    phantom_folder: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    command = ("train", "--data", phantom_folder, "--out", tmp_path / "run", "--model", "resnet18")
    assert "--devices 99999: this machine has" in fails(*command, "--devices", "99999")
    assert not (tmp_path / "run").exists()


def test_flips_are_averaged_wherever_logits_are_made(phantoms: list[Film]) -> None:
    model = create_model("resnet18").eval()
    plain = FilmDataset(phantoms[:3], [0] * 3, FilmCache(Preprocessing(32, 32)))
    averaged = FilmDataset(
        phantoms[:3], [0] * 3, FilmCache(Preprocessing(32, 32, average_flips=True))
    )
    device = torch.device("cpu")
    images = torch.stack([plain[i][0] for i in range(3)])
    with torch.inference_mode():
        expected = (model(images) + model(images.flip(-1))) / 2
        logits = film_logits(model, images, averaged.preprocessing)
    torch.testing.assert_close(logits, expected)
    ours = torch.from_numpy(predict_logits(model, averaged, device=device))
    torch.testing.assert_close(ours, expected)
    without = torch.from_numpy(predict_logits(model, plain, device=device))
    assert not torch.allclose(without, expected)


def test_a_checkpoint_predicts_as_its_study_did_with_every_option(
    phantoms: list[Film], config: TrainingConfig, tmp_path: Path
) -> None:
    chosen = replace(config, epochs=1, crop_breast=True, average_flips=True, lesion_weight=0.5)
    run_cross_validation(["resnet18"], chosen, phantoms, tmp_path, fold_count=2, only_jobs=[0])
    folder = tmp_path / "resnet18" / "fold0"
    model, metadata = load_model(folder / "model.safetensors")
    assert metadata.preprocessing == chosen.preprocessing("resnet18")
    kept = read_predictions(folder / "predictions.csv")
    films = [film for film in phantoms if film.film_id in kept.films]
    dataset = FilmDataset(films, [0] * len(films), FilmCache(metadata.preprocessing))
    logits = predict_logits(model, dataset, device=torch.device("cpu"))
    torch.testing.assert_close(torch.from_numpy(logits).double(), torch.from_numpy(kept.logits))


def test_the_first_epochs_see_crops(
    phantoms: list[Film], config: TrainingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    for kind in (CropDataset, FilmDataset):
        film = kind.film

        def record(
            self: FilmDataset, index: int, film: Any = film, name: str = kind.__name__
        ) -> Any:
            seen.append(name)
            return film(self, index)

        monkeypatch.setattr(kind, "film", record)
    chosen = replace(config, epochs=3, crop_epochs=2)
    whole = tmp_path / "whole"
    run_cross_validation(["resnet18"], chosen, phantoms, whole, fold_count=2, only_jobs=[0])
    trained = len(phantoms) // 2
    assert seen.count("CropDataset") == 2 * trained
    history = (whole / "resnet18" / "fold0" / "history.csv").read_text()
    assert len(history.splitlines()) == 4
    with pytest.raises(UserError, match="crop epochs are 3, need to be fewer than the 3 epochs"):
        replace(config, epochs=3, crop_epochs=3)


def test_a_lesion_target_needs_a_feature_map(
    phantoms: list[Film], config: TrainingConfig, tmp_path: Path
) -> None:
    chosen = replace(config, lesion_weight=0.5)
    with pytest.raises(UserError, match="vit_b_16 has no feature map for a lesion target"):
        run_cross_validation(["vit_b_16"], chosen, phantoms, tmp_path, fold_count=2, only_jobs=[0])


def test_weights_by_trunk(tmp_path: Path) -> None:
    file = tmp_path / "trunk.safetensors"
    save_file({"x": torch.zeros(1)}, file)
    value = trunk_weights(f"resnet50={file},vgg16=none,vit_b_16=imagenet")
    config = TrainingConfig(weights=value)
    assert config.weights_for("resnet50") == str(file)
    assert config.weights_for("vgg16") is None
    assert config.weights_for("vit_b_16") == "imagenet"
    assert config.weights_label() == "resnet50=trunk.safetensors,vit_b_16=imagenet"
    assert trunk_weights("resnet50=none") is None
    assert TrainingConfig(weights=str(file)).weights_for("vgg16") == str(file)
    assert TrainingConfig(weights=str(file)).weights_label() == "trunk.safetensors"
    for wrong, message in (
        ("resnet34=imagenet", "TRUNK is one of resnet50, vgg16"),
        ("resnet50=nowhere", "no such file"),
        ("resnet50,vgg16=none", "--weights resnet50: needs TRUNK=FILE"),
    ):
        with pytest.raises(UserError, match=message):
            trunk_weights(wrong)
