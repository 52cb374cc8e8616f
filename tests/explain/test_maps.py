"""Activation maps: against pytorch-grad-cam and autograd, on every model, and at the edges."""

import json
import subprocess
import sys

import numpy as np
import pytest
import torch
from pytorch_grad_cam import ScoreCAM
from scipy.stats import spearmanr
from torch import nn

from hmc_fast import UserError, create_model
from hmc_fast.explain import (
    METHODS,
    ScoreOptions,
    activation_map,
    default_layer_name,
    spatial_layers,
    target_layer,
)
from hmc_fast.explain.methods import FLAT, NOT_FINITE
from hmc_fast.models import FilmModel

from .conftest import SIZE, lively

CAMS = METHODS[:3]
MEMORY_LIMIT_MIB = 6 * 1024


@pytest.fixture(scope="module")
def image() -> torch.Tensor:
    return torch.randn(3, SIZE, SIZE, generator=torch.Generator().manual_seed(1))


@pytest.mark.parametrize("name", ["hmc_net_resnet18", "vit_b_16"])
def test_score_cam_is_pytorch_grad_cams(name: str) -> None:
    model = lively(create_model(name, image_size=64))
    if name == "vit_b_16":  # two of its twelve layers show as much, in a sixth of the time
        model.encoder.layers = model.encoder.layers[:2]
    image = torch.randn(3, 64, 64)
    target = target_layer(model)
    theirs = ScoreCAM(model, [target.module], reshape_transform=target.reshape)
    theirs.batch_size = 64
    with torch.no_grad():
        expected = theirs(image[None], [lambda logits: logits[1]])[0]
    theirs.activations_and_grads.release()
    seen = []
    score = ScoreOptions(batch_size=50, on_batch=lambda done, total: seen.append((done, total)))
    ours = activation_map(model, image, "scorecam", 1, score=score)
    np.testing.assert_allclose(ours.values, expected, rtol=1e-3, atol=1e-3)
    assert expected.std() > 0.05
    assert sum(done for done, _ in seen) == seen[0][1] == (768 if name == "vit_b_16" else 512)


def test_grad_cam_is_the_papers_formula(model: FilmModel, image: torch.Tensor) -> None:
    c3, c4, c5 = (stage.detach() for stage in model.stages(image[None]))
    fused = model.fuse((c3, c4, c5)).detach().requires_grad_()
    model.classify(fused)[0, 1].backward()
    weights = fused.grad.mean((2, 3), keepdim=True)
    cam = (weights * fused).sum(1)[0].relu().detach().numpy()
    found = activation_map(model, image, "gradcam", 1)
    assert found.layer == "msca"
    upscaled = np.kron((cam - cam.min()) / np.ptp(cam), np.ones((SIZE // 3, SIZE // 3)))
    assert spearmanr(upscaled.ravel(), found.values.ravel()).statistic > 0.85
    centre = slice(SIZE // 6, None, SIZE // 3)
    coarse = found.values[centre, centre]
    assert np.unravel_index(coarse.argmax(), coarse.shape) == np.unravel_index(
        cam.argmax(), cam.shape
    )


@pytest.mark.parametrize(
    "name", ["hmc_net", "resnet50_hsa", "resnet50_msca", "resnet50", "vgg16", "vgg19", "vit_b_16"]
)
def test_every_method_explains_every_model(name: str) -> None:
    model = lively(create_model(name, image_size=64))
    image = torch.randn(3, 64, 64)
    state = {key: value.clone() for key, value in model.state_dict().items()}
    model.train()
    for method in CAMS:
        found = activation_map(model, image, method, 1, score=ScoreOptions(channels=3))
        assert found.values.shape == (64, 64)
        assert found.layer == default_layer_name(model)
        assert np.isfinite(found.values).all()
        if found.note is None:
            assert found.values.min() == 0
            assert found.values.max() == pytest.approx(1, abs=1e-3)
        else:
            assert not found.values.any()
    assert model.training
    assert all(module.training for module in model.modules())
    assert all(p.requires_grad and p.grad is None for p in model.parameters())
    assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())


def test_maps_of_vit_lie_where_its_patches_are() -> None:
    model = lively(create_model("vit_b_16", image_size=64))
    found = target_layer(model)
    assert found.reshape is not None
    tokens = torch.arange(17.0)[None, :, None].expand(1, 17, 5)
    assert found.reshape(tokens)[0, 0].tolist() == torch.arange(1.0, 17).view(4, 4).tolist()
    assert target_layer(model, "conv_proj").reshape is None


def test_layers_before_an_overwriting_relu_keep_their_output(image: torch.Tensor) -> None:
    model = lively(create_model("resnet18"))
    assert model.relu.inplace
    score = ScoreOptions(channels=4)
    early = activation_map(model, image, "scorecam", 1, layer="bn1", score=score)
    after = activation_map(model, image, "scorecam", 1, layer="relu", score=score)
    assert not np.array_equal(early.values, after.values)
    assert model.relu.inplace


def test_an_unknown_layer_lists_the_valid_ones(model: FilmModel, image: torch.Tensor) -> None:
    with pytest.raises(UserError, match=r"layer 'layer5' is no feature map of hmc_net_resnet18"):
        activation_map(model, image, "gradcam", 1, layer="layer5")
    with pytest.raises(UserError, match=r"choose one of conv1.*layer4\.1.*hsa\.C3.*msca"):
        target_layer(model, "nothing")
    with pytest.raises(UserError, match="is no feature map"):
        target_layer(model, "fc")
    with pytest.raises(UserError, match=r"encoder_layer_11\.ln_1\?"):
        target_layer(create_model("vit_b_16", image_size=32), "encoder.encoder_layer_11.ln_1")
    for name in spatial_layers(model):
        assert target_layer(model, name).name == name


def test_gradients_in_inference_mode_are_a_clear_line(
    model: FilmModel, image: torch.Tensor
) -> None:
    with torch.inference_mode():
        for method in ("gradcam", "gradcam++"):
            with pytest.raises(UserError, match=r"needs gradients, but it was called in torch"):
                activation_map(model, image, method, 1)
        inside = activation_map(model, image, "scorecam", 1, score=ScoreOptions(channels=4))
        made_inside = create_model("resnet18")
        sample = image.clone()
    assert inside.note is None
    with pytest.raises(UserError, match=r"the model was made in torch.inference_mode\(\)"):
        activation_map(made_inside, image, "gradcam", 1)
    with torch.no_grad():
        without_grad = activation_map(model, sample, "gradcam", 1)
    np.testing.assert_array_equal(
        without_grad.values, activation_map(model, image, "gradcam", 1).values
    )


def test_a_flat_or_overflowing_map_is_marked(image: torch.Tensor) -> None:
    flat = lively(create_model("resnet18"))
    nn.init.zeros_(flat.fc.weight)
    for method in ("gradcam", "gradcam++"):
        found = activation_map(flat, image, method, 0)
        assert found.note == FLAT
        assert not found.values.any()
    overflowing = lively(create_model("resnet18"))
    nn.init.constant_(overflowing.fc.weight, float("inf"))
    for method in CAMS:
        found = activation_map(overflowing, image, method, 0, score=ScoreOptions(channels=2))
        assert found.note in (FLAT, NOT_FINITE)
        assert not found.values.any()


def test_wrong_arguments(model: FilmModel, image: torch.Tensor) -> None:
    with pytest.raises(UserError, match="unknown method 'lime'"):
        activation_map(model, image, "lime", 1)
    with pytest.raises(UserError, match="class 2: the model has 2 classes"):
        activation_map(model, image, "gradcam", 2)
    with pytest.raises(UserError, match="channels is 0, needs at least 1"):
        ScoreOptions(channels=0)


def test_score_cam_without_grad_cam_installed(
    model: FilmModel, image: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pytorch_grad_cam", None)
    with pytest.raises(UserError, match=r"pip install 'hmc-fast\[explain\]'"):
        activation_map(model, image, "gradcam", 1)


@pytest.mark.systems
@pytest.mark.exhaustive
@pytest.mark.timeout(1200)  # five minutes on a busy machine
def test_score_cam_at_native_size_stays_under_6_gib() -> None:
    """Two of hmc_net's 2048 channels at 1024²: every further batch uses the same memory again."""
    code = """
import json, sys
from pathlib import Path
import torch
from hmc_fast import create_model
from hmc_fast.explain import ScoreOptions, activation_map
seen = []
score = ScoreOptions(channels=2, on_batch=lambda done, total: seen.append((done, total)))
model, image = create_model("hmc_net").eval(), torch.randn(3, 1024, 1024)
found = activation_map(model, image, "scorecam", 1, score=score)
lines = Path("/proc/self/status").read_text().splitlines()
peak = next(int(line.split()[1]) for line in lines if line.startswith("VmHWM:")) / 2**10
print(json.dumps({"peak_mib": peak, "seen": seen, "shape": found.values.shape}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    result = json.loads(done.stdout.splitlines()[-1])
    assert result["seen"] == [[1, 2], [1, 2]]
    assert result["shape"] == [1024, 1024]
    assert result["peak_mib"] < MEMORY_LIMIT_MIB
