"""Checkpoints carry everything, and nothing else is accepted as one."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from hmc_fast import UserError, create_model, load_model
from hmc_fast.checkpoint import CheckpointMetadata, OperatingPoint, save_checkpoint
from hmc_fast.data import Preprocessing
from hmc_fast.models import HMCNet


def metadata(model: HMCNet) -> CheckpointMetadata:
    return CheckpointMetadata(
        model.config,
        "malignant",
        ("rest", "malignant"),
        Preprocessing(64, 96),
        {"f": "d"},
        {"a": 1},
    )


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    model = create_model("hmc_net_resnet18", hsa_stages=("C2", "C4"), dropout=0.2)
    path = tmp_path / "model.safetensors"
    save_checkpoint(path, model, metadata(model))
    return path


def test_round_trip(checkpoint: Path) -> None:
    first, second = load_model(checkpoint), load_model(checkpoint, backend="reference")
    assert not first.model.training
    assert first.metadata == second.metadata
    assert first.metadata.model.hsa_stages == ("C2", "C4")
    assert first.metadata.preprocessing == Preprocessing(64, 96)
    x = torch.randn(1, 3, 64, 96)
    with torch.inference_mode():
        assert torch.equal(first.model(x), second.model(x))


def test_an_operating_point_comes_back_and_a_damaged_one_is_refused(tmp_path: Path) -> None:
    model, path = create_model("resnet18"), tmp_path / "model.safetensors"
    point = OperatingPoint(0.25, 0.9, 0.92, 0.6, 100)
    known = replace(metadata(model), operating_point=point)
    save_checkpoint(path, model, known)
    assert load_model(path).metadata.operating_point == point
    for damage in ({"threshold": 2.0}, {"sensitivity": "high"}, {"threshold": None}):
        values = known.to_json()
        values["operating_point"] |= damage
        save_file(load_file(path), path, metadata={"hmc_fast": json.dumps(values)})
        with pytest.raises(UserError, match="operating_point"):
            load_model(path)
        save_checkpoint(path, model, known)


def test_a_checkpoint_of_another_model(checkpoint: Path) -> None:
    with pytest.raises(UserError, match="is a checkpoint of hmc_net_resnet18, but resnet50 was"):
        load_model(checkpoint, expected_model="resnet50")


def rewrite(path: Path, **changes: object) -> None:
    model = create_model("hmc_net_resnet18", hsa_stages=("C2", "C4"))
    values = metadata(model).to_json()
    values.update(changes)
    save_file(load_file(path), path, metadata={"hmc_fast": json.dumps(values)})


def test_damaged_descriptions(checkpoint: Path) -> None:
    rewrite(checkpoint, format=99)
    with pytest.raises(UserError, match="has checkpoint format 99, this release reads 1"):
        load_model(checkpoint)
    rewrite(checkpoint, model={"name": "x"})
    with pytest.raises(UserError, match="unknown model 'x'"):
        load_model(checkpoint)
    other = create_model("resnet18").config.to_json()
    rewrite(checkpoint, model=other)
    with pytest.raises(UserError, match="its parameters are not those of resnet18"):
        load_model(checkpoint)
    save_file(load_file(checkpoint), checkpoint)
    with pytest.raises(UserError, match="no hmc-fast checkpoint"):
        load_model(checkpoint)


MODEL = create_model("resnet18").config.to_json()
ANOTHER_TRUNK = create_model("resnet50_hsa").config.to_json() | {"name": "resnet18_hsa"}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"bilateral": "no"}, "bilateral: Input should be a valid boolean"),
        ({"preprocessing": {"height": 64, "width": 96, "crop_breast": "no"}}, "crop_breast"),
        ({"preprocessing": {"height": 64.5, "width": 96}}, "height: Input should be a valid int"),
        ({"preprocessing": {"height": 65, "width": 96}}, "multiples of 32"),
        ({"preprocessing": {"height": 64, "width": 96, "sharpen": 1}}, "sharpen: Unexpected"),
        ({"task": "benign"}, "unknown task"),
        ({"class_names": ["malignant", "rest"]}, "classes are not those of its task"),
        ({"training_films": ["f"]}, "training_films: Input should be an object"),
        ({"training": None}, "training: Input should be an object"),
        ({"extra": 1}, "extra: Unexpected"),
        ({"model": {**MODEL, "dropout": -1}}, "dropout is -1.0, needs 0 to 1"),
        ({"model": ANOTHER_TRUNK}, "another architecture than resnet18_hsa"),
    ],
    ids=lambda value: next(iter(value)) if isinstance(value, dict) else value,
)
def test_a_description_has_the_types_that_it_should(
    checkpoint: Path, changes: dict[str, object], message: str
) -> None:
    rewrite(checkpoint, **changes)
    with pytest.raises(UserError, match=message):
        load_model(checkpoint)


def test_a_description_that_is_no_json(checkpoint: Path) -> None:
    for text in ("[" * 100_000, "{", "3", '{"format": NaN}'):
        save_file(load_file(checkpoint), checkpoint, metadata={"hmc_fast": text})
        with pytest.raises(UserError, match="model.safetensors: "):
            load_model(checkpoint)


@pytest.mark.parametrize("dtype", [torch.int32, torch.float16, torch.float8_e4m3fn])
def test_parameters_of_another_type_are_refused(checkpoint: Path, dtype: torch.dtype) -> None:
    tensors = load_file(checkpoint)
    description = {"hmc_fast": json.dumps(load_model(checkpoint).metadata.to_json())}
    save_file({**tensors, "fc.bias": tensors["fc.bias"].to(dtype)}, checkpoint, description)
    with pytest.raises(UserError, match="fc.bias is of torch"):
        load_model(checkpoint)


def test_a_pickle_is_never_opened(tmp_path: Path) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[str]]:
            return (Path.touch, (tmp_path / "exploded",))

    path = tmp_path / "model.safetensors"
    torch.save({"bomb": Bomb()}, path)
    with pytest.raises(UserError, match="pickled PyTorch file"):
        load_model(path)
    assert not (tmp_path / "exploded").exists()


def test_truncated_and_missing(checkpoint: Path, tmp_path: Path) -> None:
    for keep in (0, 4, 100, 10_000):
        cut = tmp_path / "cut.safetensors"
        cut.write_bytes(checkpoint.read_bytes()[:keep])
        with pytest.raises(UserError, match="cut.safetensors"):
            load_model(cut)
    with pytest.raises(UserError, match="no such file"):
        load_model(tmp_path / "none.safetensors")
    with pytest.raises(UserError, match="is a folder"):
        load_model(tmp_path)
