"""VGG and ViT through the commands: train and predict."""

import json
from pathlib import Path

import pytest
from samples import sampled

from hmc_fast.cli.app import run


@pytest.mark.systems
@pytest.mark.parametrize("model", sampled(("vgg16", "vit_b_16"), ["vit_b_16"]))
def test_train_and_predict(
    model: str, phantom_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["train", "--data", str(phantom_folder), "--out", str(tmp_path), "--model", model]
    arguments += ["--size", "32", "--epochs", "1", "--folds", "3", "--batch-size", "24", "--json"]
    assert run(arguments) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["model"] == model
    assert result["history"][0]["train_loss"] > 0
    checkpoint = ["--checkpoint", str(tmp_path / "model.safetensors")]
    assert run(["predict", str(phantom_folder / "mdb001.pgm"), *checkpoint, "--json"]) == 0
    predicted = json.loads(capsys.readouterr().out)
    assert predicted["model"]["image_size"] == (32 if model == "vit_b_16" else None)
