"""VGG and ViT: torchvision's numbers, their weights, sizes and checkpoints."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from torchvision import models as torchvision_models

from hmc_fast import UserError, create_model, load_model
from hmc_fast.checkpoint import CheckpointMetadata, save_checkpoint
from hmc_fast.data import Preprocessing
from hmc_fast.models import FilmModel

pytestmark = pytest.mark.systems  # full-size VGGs

BASELINES = ("vgg16", "vgg19", "vit_b_16")
SIZE = 64


def open_head(model: FilmModel) -> FilmModel:
    """Torchvision starts ViT's classifier at zero, which would hide everything before it."""
    torch.nn.init.normal_(model.get_parameter(head_name(model)), std=0.05)
    return model


def head_name(model: FilmModel) -> str:
    return "heads.head.weight" if model.config.name == "vit_b_16" else "classifier.6.weight"


@pytest.fixture(scope="module", params=("vgg16", "vit_b_16"))
def model(request: pytest.FixtureRequest) -> FilmModel:
    torch.manual_seed(0)
    return open_head(create_model(request.param, num_classes=3, image_size=SIZE)).eval()


@pytest.mark.parametrize("model", BASELINES, indirect=True)
def test_equals_torchvision_bit_for_bit(model: FilmModel) -> None:
    name = model.config.name
    arguments = {"image_size": SIZE} if name == "vit_b_16" else {}
    plain = torchvision_models.get_model(name, num_classes=3, **arguments).eval()
    plain.load_state_dict(model.state_dict(), strict=True)
    x = torch.randn(2, 3, SIZE, SIZE)
    if name != "vit_b_16":
        plain.to(memory_format=torch.channels_last)
        x = x.to(memory_format=torch.channels_last)
    with torch.inference_mode():
        assert torch.equal(model(x), plain(x))
        assert model(x).std() > 0


def test_gradients_reach_every_parameter(model: FilmModel) -> None:
    model.zero_grad()
    model(torch.randn(2, 3, SIZE, SIZE)).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name
    model.zero_grad()


def test_checkpoint_round_trip(model: FilmModel, tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    names = ("normal", "benign", "malignant")
    preprocessing = Preprocessing.square(SIZE)
    save_checkpoint(
        path,
        model,
        CheckpointMetadata(model.config, "three_class", names, preprocessing, {"f": "d"}, {}),
    )
    loaded = load_model(path, expected_model=model.config.name)
    assert loaded.metadata.model == model.config
    x = torch.randn(1, 3, SIZE, SIZE)
    with torch.inference_mode():
        assert torch.equal(loaded.model(x), model(x))


def test_dropout_acts_before_the_classifier_and_in_training_only() -> None:
    model = open_head(create_model("vit_b_16", image_size=32, dropout=0.5))
    x = torch.randn(1, 3, 32, 32)
    assert not torch.equal(model(x), model(x))
    model.eval()
    assert torch.equal(model(x), model(x))
    with torch.device("meta"):
        vgg = create_model("vgg16", dropout=0.5)
    assert [m.p for m in vgg.classifier if isinstance(m, torch.nn.Dropout)] == [0.5, 0.5]


def test_vgg_takes_any_multiple_of_32_and_vit_its_own_size(model: FilmModel) -> None:
    if model.config.name == "vit_b_16":
        assert model.config.image_size == SIZE
        for shape in ((64, 96), (96, 96), (224, 224)):
            with pytest.raises(UserError, match=f"built for 64x64 images, got {shape[0]}x"):
                model(torch.randn(1, 3, *shape))
        with pytest.raises(UserError, match="100 is not a multiple of 32"):
            create_model("vit_b_16", image_size=100)
        with pytest.raises(UserError, match="image size 32000000 is above 4096"):
            create_model("vit_b_16", image_size=32_000_000)
        return
    assert model.config.image_size is None
    with torch.inference_mode():
        assert model(torch.randn(1, 3, 32, 96)).shape == (1, 3)
    with pytest.raises(ValueError, match="image size 100x96.*multiples of 32"):
        model(torch.randn(1, 3, 100, 96))


def stored(path: Path, state: dict[str, Tensor]) -> Path:
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)
    return path


def test_vgg_weights_with_and_without_the_hidden_layers(tmp_path: Path) -> None:
    state = torchvision_models.vgg16(num_classes=10).state_dict()
    features = {name: tensor for name, tensor in state.items() if name.startswith("features.")}
    whole = create_model("vgg16", weights=stored(tmp_path / "whole.safetensors", state))
    assert torch.equal(whole.classifier[3].weight, state["classifier.3.weight"])
    assert whole.classifier[6].weight.shape[0] == 2
    trunk = create_model("vgg16", weights=stored(tmp_path / "trunk.safetensors", features))
    assert torch.equal(trunk.features[28].weight, state["features.28.weight"])
    assert not torch.equal(trunk.classifier[3].weight, state["classifier.3.weight"])
    del state["classifier.3.bias"]
    with pytest.raises(UserError, match="the file lacks classifier.3.bias"):
        create_model("vgg16", weights=stored(tmp_path / "part.safetensors", state))
    with pytest.raises(UserError, match="the file lacks features.16.bias and"):
        create_model("vgg19", weights=tmp_path / "trunk.safetensors")


def test_vit_weights_of_another_size_are_interpolated(tmp_path: Path) -> None:
    source = torchvision_models.vit_b_16(image_size=96)
    path = stored(tmp_path / "vit.safetensors", source.state_dict())
    state = torchvision_models.vision_transformer.interpolate_embeddings(
        SIZE, 16, source.state_dict()
    )
    model = create_model("vit_b_16", weights=path, image_size=SIZE)
    assert torch.equal(model.encoder.pos_embedding, state["encoder.pos_embedding"])
    same = create_model("vit_b_16", weights=path, image_size=96)
    assert torch.equal(same.encoder.pos_embedding, source.encoder.pos_embedding)
    damaged = {**source.state_dict(), "encoder.pos_embedding": torch.zeros(1, 12, 768)}
    with pytest.raises(UserError, match=r"encoder.pos_embedding cannot be used"):
        create_model("vit_b_16", weights=stored(path, damaged), image_size=SIZE)


def test_downloaded_weights_lose_their_thousand_classes(monkeypatch: pytest.MonkeyPatch) -> None:
    imagenet = torchvision_models.vit_b_16().state_dict()
    enum = torchvision_models.get_model_weights("vit_b_16")
    monkeypatch.setattr(enum, "get_state_dict", lambda *_, **__: imagenet)
    own = create_model("vit_b_16", weights="imagenet").state_dict()
    for key, tensor in imagenet.items():
        if not key.startswith("heads."):
            assert torch.equal(own[key], tensor), key
    assert own["heads.head.weight"].shape == (2, 768)


def test_a_damaged_download_is_one_line_and_runs_no_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Bomb:
        def __reduce__(self) -> tuple[object, tuple[Path]]:
            return (Path.touch, (tmp_path / "exploded",))

    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    url = torchvision_models.get_model_weights("resnet18").DEFAULT.url
    cached = tmp_path / "hub" / "checkpoints" / url.rpartition("/")[2]
    cached.parent.mkdir(parents=True)
    for damage in (b"", b"no weights at all", b"PK\3\4" + bytes(900), None):
        cached.write_bytes(damage or b"")
        if damage is None:
            torch.save({"conv1.weight": Bomb()}, cached)
        with pytest.raises(UserError, match="ImageNet weights for resnet18 could not") as caught:
            create_model("resnet18", weights="imagenet")
        assert len(str(caught.value)) < 1000
    assert not (tmp_path / "exploded").exists()


def test_compiles_and_exports_whole() -> None:
    model = open_head(create_model("vit_b_16", image_size=32)).eval()
    x = torch.randn(2, 3, 32, 32)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(model, (x,), dynamic_shapes={"x": {0: batch}}).module()
    with torch.inference_mode():
        torch.testing.assert_close(compiled(x), model(x))
    more = torch.randn(5, 3, 32, 32)
    torch.testing.assert_close(exported(more), model(more), rtol=1e-4, atol=1e-5)


def test_bench_refuses_a_second_size_for_vit(fails: Callable[..., str], tmp_path: Path) -> None:
    arguments = ("bench", "--model", "vit_b_16", "--also-size", "64", "--out", tmp_path / "b")
    assert "vit_b_16 classifies images of one size only" in fails(*arguments)
