"""Commands as their users run them."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from PIL import Image, ImageChops

from hmc_fast.bench.record import read_record
from hmc_fast.checkpoint import load_model
from hmc_fast.cli.app import run
from hmc_fast.study import fold_checkpoints


@pytest.fixture(scope="module")
def trained(phantom_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("train") / "run"
    arguments = ["train", "--data", str(phantom_folder), "--out", str(out), "--model"]
    arguments += ["hmc_net_resnet18", "--size", "32", "--epochs", "1", "--folds", "3"]
    assert run(arguments) == 0
    return out / "model.safetensors"


def test_predict_tells_probabilities_model_and_preprocessing(
    trained: Path, phantom_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    films = [phantom_folder / f"mdb00{n}.pgm" for n in (1, 2)]
    assert run(["predict", *map(str, films), "--checkpoint", str(trained), "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result["model"]["name"] == "hmc_net_resnet18"
    assert result["preprocessing"]["height"] == 32
    assert [film["file"] for film in result["films"]] == list(map(str, films))
    for film in result["films"]:
        assert sum(film["probabilities"].values()) == pytest.approx(1)
        assert film["predicted"] in film["probabilities"]


@pytest.mark.real_data
def test_predict_reads_real_films(
    trained: Path, real_data: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    films = [real_data / "mias" / "mdb001.pgm", real_data / "dicom" / "malign_P00820_LCC_rle.dcm"]
    assert run(["predict", *map(str, films), "--checkpoint", str(trained), "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["films"]) == 2


def test_evaluate_leaves_out_films_seen_in_training(
    trained: Path, phantom_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["evaluate", "--checkpoint", str(trained), "--data", str(phantom_folder), "--json"]
    assert run([*arguments, "--out", str(tmp_path / "p.csv")]) == 0
    unseen = json.loads(capsys.readouterr().out)
    assert unseen["films"] + unseen["films_seen_in_training"] == 36
    assert unseen["films"] == 12
    assert len((tmp_path / "p.csv").read_text().splitlines()) == 13
    assert run([*arguments, "--include-seen"]) == 0
    assert json.loads(capsys.readouterr().out)["films"] == 36


def test_evaluate_leaves_out_other_films_of_training_patients(
    trained: Path,
    phantom_folder: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """By the keys of patients alone: no film here has the pixels of one trained on."""
    other = shutil.copytree(phantom_folder, tmp_path / "films")
    for film in other.glob("*.pgm"):
        with Image.open(film) as image:
            ImageChops.invert(image).save(film)
    arguments = ["evaluate", "--checkpoint", str(trained), "--data", str(other), "--json"]
    assert run(arguments) == 0
    unseen = json.loads(capsys.readouterr().out)
    assert (unseen["films"], unseen["films_seen_in_training"]) == (12, 0)
    assert unseen["patients_seen_in_training"] == 12


def test_wrong_usage_is_explained(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["bench", "--nope"], ["cv"], ["nothing"], ["cv", "--epochs", "many"]):
        assert run(arguments) == 2
        assert "Traceback" not in capsys.readouterr().err
    assert run(["--version"]) == 0


def test_doctor_gives_a_reason_and_a_remedy(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["doctor", "--json"]) == 0
    checks = {check["what"]: check for check in json.loads(capsys.readouterr().out)["checks"]}
    assert checks["reference attention"]["available"]
    assert checks["NVIDIA GPU"]["available"] == torch.cuda.is_available()
    for check in checks.values():
        assert check["available"] or (check["detail"] and check["remedy"])


def test_bad_input_is_one_line(
    trained: Path, phantom_folder: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    film = phantom_folder / "mdb001.pgm"
    pickled = tmp_path / "model.pth"
    torch.save({"a": torch.zeros(1)}, pickled)
    assert "pickled PyTorch file" in fails("predict", film, "--checkpoint", pickled)
    assert "no such file" in fails("predict", tmp_path / "x.pgm", "--checkpoint", trained)
    study = ("cv", "--data", phantom_folder, "--out", tmp_path / "s", "--model", "resnet18")
    assert "multiples of 32" in fails(*study, "--size", "100")
    assert "50 folds need 50 patients of each class" in fails(*study, "--folds", "50")
    assert "unknown model" in fails(*study, "--model", "resnet34")
    assert "no such file" in fails(*study, "--weights", tmp_path / "w.safetensors")
    assert "unknown task 'age'; choose one of malignant" in fails(*study, "--task", "age")
    blocked = tmp_path / "file"
    blocked.write_text("")
    assert "cannot be used as a folder" in fails(*study[:4], blocked / "x", *study[5:])
    assert "unknown preset" in fails("bench", "--preset", "huge", "--out", tmp_path / "b")
    assert "is a folder" in fails("predict", film, "--checkpoint", tmp_path)
    backend = ("predict", film, "--checkpoint", trained, "--backend")
    assert "cannot run this call: " in fails(*backend, "triton")
    assert "unknown backend 'fast'; choose one of auto" in fails(*backend, "fast")
    evaluation = ("evaluate", "--checkpoint", trained, "--data", phantom_folder, "--out")
    assert "could not be written" in fails(*evaluation, blocked / "p.csv")
    assert "File name too long" in fails(*evaluation, tmp_path / ("p" * 300))


def test_bench_without_arguments_says_phantoms(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("hmc_fast.cli.bench.PHANTOM_SIZE", 64)
    arguments = ["bench", "--out", str(tmp_path), "--size", "32", "--epochs", "1", "--folds", "2"]
    arguments += ["--implementation", "eager", "--precision", "fp32", "--seconds", "0.1"]
    assert run(arguments) == 0
    assert "procedural phantoms" in capsys.readouterr().out
    assert {p.name for p in tmp_path.iterdir()} >= {"record.jsonl", "report.md", "report.html"}
    assert read_record(tmp_path / "record.jsonl").options["training"]["head_epochs"] == 1
    for checkpoint in fold_checkpoints(tmp_path / "study", "hmc_net_resnet18_lesions"):
        state = load_model(checkpoint).model.state_dict()
        gates = [value for name, value in state.items() if name.endswith(("gamma", "net_weight"))]
        assert len(gates) == 5
        assert all(gate.any() for gate in gates)  # so that attention changes the logits
