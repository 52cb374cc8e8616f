"""The models: names, identities at the start, sizes, precisions, compile and export."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from torch.nn import functional
from torchvision.models import resnet50 as torchvision_resnet50

from hmc_fast import MODEL_NAMES, UserError, create_model
from hmc_fast.kernels.backend import BackendUnavailableError
from hmc_fast.models import HMCNet, model_entry

MEMORY_LIMIT_MIB = 4096


def randomise_gates(model: HMCNet) -> HMCNet:
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("gamma"):
                parameter.copy_(torch.randn(parameter.shape, generator=generator))
    return model


def test_names() -> None:
    resnets = {
        "hmc_net", "resnet50_hsa", "resnet50_msca", "resnet50",
        "hmc_net_resnet18", "resnet18_hsa", "resnet18_msca", "resnet18",
    }  # fmt: skip
    with_head = {f"{name}_lesions" for name in resnets}
    assert set(MODEL_NAMES) == resnets | with_head | {"vgg16", "vgg19", "vit_b_16"}
    with pytest.raises(UserError, match="unknown model 'resnet34'"):
        create_model("resnet34")


@pytest.mark.parametrize("name", sorted(set(MODEL_NAMES) - {"vit_b_16"}))
def test_every_model_but_vit_classifies_any_multiple_of_32(name: str) -> None:
    classes = 2 if model_entry(name).config.lesion_head else 3
    model = create_model(name, num_classes=classes).eval()
    with torch.inference_mode():
        assert model(torch.randn(2, 3, 32, 96)).shape == (2, classes)
    with pytest.raises(ValueError, match="image size 100x96.*multiples of 32"):
        model(torch.randn(1, 3, 100, 96))


@pytest.mark.parametrize("name", ["hmc_net", "resnet50_hsa", "resnet50_msca", "resnet50"])
def test_closed_gates_leave_torchvisions_resnet50_exactly(name: str) -> None:
    torch.manual_seed(0)
    model = create_model(name, num_classes=5).eval()
    plain = torchvision_resnet50(num_classes=5).to(memory_format=torch.channels_last).eval()
    state = {k: v for k, v in model.state_dict().items() if not k.startswith(("hsa.", "msca."))}
    plain.load_state_dict(state)
    x = torch.randn(2, 3, 64, 64).to(memory_format=torch.channels_last)
    with torch.inference_mode():
        assert torch.equal(model(x), plain(x))
        if name != "resnet50":
            assert not torch.equal(randomise_gates(model)(x), plain(x))


def test_results_do_not_depend_on_the_batch() -> None:
    model = randomise_gates(create_model("hmc_net_resnet18")).double().eval()
    x = torch.randn(4, 3, 64, 64, dtype=torch.float64)
    with torch.inference_mode():
        alone = torch.cat([model(image[None]) for image in x])
        torch.testing.assert_close(model(x), alone, rtol=1e-10, atol=1e-12)


def test_state_dicts_do_not_depend_on_the_backend() -> None:
    a, b = (create_model("hmc_net_resnet18", backend=name) for name in ("reference", "triton"))
    assert {k: v.shape for k, v in a.state_dict().items()} == {
        k: v.shape for k, v in b.state_dict().items()
    }
    b.load_state_dict(a.state_dict())
    with pytest.raises(BackendUnavailableError):
        b(torch.randn(2, 3, 64, 64))


def test_hsa_at_c2_is_opt_in() -> None:
    assert list(create_model("hmc_net").hsa) == ["C3", "C4", "C5"]
    assert list(create_model("hmc_net", hsa_stages=("C2", "C5")).hsa) == ["C2", "C5"]
    with pytest.raises(UserError, match="unknown HSA stage 'C1'"):
        create_model("hmc_net", hsa_stages=("C1",))
    with pytest.raises(UserError, match="no self-attention"):
        create_model("resnet50", hsa_stages=("C3",))


def test_scale_weights_sum_to_one_over_the_scales() -> None:
    model = randomise_gates(create_model("hmc_net_resnet18")).eval()
    x = torch.randn(2, 3, 96, 64)
    with torch.inference_mode():
        logits, weights = model.forward_with_scale_weights(x)
        torch.testing.assert_close(logits, model(x))
    assert weights.shape == (2, 4, 3, 2, 2)
    torch.testing.assert_close(weights.sum(-1), torch.ones(2, 4, 3, 2))
    with pytest.raises(ValueError, match="no scale weights"):
        create_model("resnet18").forward_with_scale_weights(x)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_autocast_trains(dtype: torch.dtype) -> None:
    model = randomise_gates(create_model("hmc_net_resnet18"))
    with torch.autocast("cpu", dtype):
        loss = model(torch.randn(2, 3, 64, 64)).float().square().mean()
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name


def test_compiles_and_exports_whole() -> None:
    model = randomise_gates(create_model("hmc_net_resnet18")).eval()
    x = torch.randn(2, 3, 64, 64)
    compiled = torch.compile(model, fullgraph=True, backend="aot_eager")
    batch = torch.export.Dim("batch", min=1, max=64)
    exported = torch.export.export(model, (x,), dynamic_shapes={"x": {0: batch}}).module()
    with torch.inference_mode():
        torch.testing.assert_close(compiled(x), model(x))
    more = torch.randn(5, 3, 64, 64)
    torch.testing.assert_close(exported(more), model(more), rtol=1e-4, atol=1e-5)


@pytest.mark.systems
@pytest.mark.exhaustive
def test_a_large_film_stays_under_4_gib_of_resident_memory() -> None:
    code = """
import json, torch
from hmc_fast import create_model
from hmc_fast.bench.measuring.memory import resident_peak_mib
model = create_model("hmc_net").eval()
with torch.inference_mode():
    logits = model(torch.randn(1, 3, 1024, 1024))
print(json.dumps({"peak_mib": resident_peak_mib(), "finite": bool(logits.isfinite().all())}))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    result = json.loads(done.stdout)
    assert result["finite"]
    assert result["peak_mib"] < MEMORY_LIMIT_MIB


def _conv_bn(x: Tensor, state: dict[str, Tensor], name: str, number: str, **kwargs: int) -> Tensor:
    x = functional.conv2d(x, state[f"{name}conv{number}.weight"], **kwargs)
    return _bn(x, state, f"{name}bn{number}")


def _bn(x: Tensor, state: dict[str, Tensor], name: str) -> Tensor:
    statistics = (state[f"{name}.running_mean"], state[f"{name}.running_var"])
    return functional.batch_norm(x, *statistics, state[f"{name}.weight"], state[f"{name}.bias"])


def resnet_v1_features(x: Tensor, state: dict[str, Tensor]) -> list[Tensor]:
    """C2 to C5 of He et al.'s ResNet-50: the first 1×1 convolution of a stage has the stride."""
    x = functional.relu(_conv_bn(x, state, "", "1", stride=2, padding=3))
    x = functional.max_pool2d(x, 3, 2, 1)
    features = []
    for stage, blocks in enumerate((3, 4, 6, 3), start=1):
        for block in range(blocks):
            name = f"layer{stage}.{block}."
            stride = 2 if stage > 1 and block == 0 else 1
            y = functional.relu(_conv_bn(x, state, name, "1", stride=stride))
            y = functional.relu(_conv_bn(y, state, name, "2", padding=1))
            y = _conv_bn(y, state, name, "3")
            if block == 0:
                x = functional.conv2d(x, state[f"{name}downsample.0.weight"], stride=stride)
                x = _bn(x, state, f"{name}downsample.1")
            x = functional.relu(x + y)
        features.append(x)
    return features


@pytest.mark.real_data
def test_real_v1_weights_give_the_features_of_a_v1_resnet(real_data: Path) -> None:
    path = real_data / "weights" / "resnet50_v1_imagenet_fp16_backbone.safetensors"
    state = {name: tensor.float() for name, tensor in load_file(path).items()}
    x = torch.rand(1, 3, 128, 96)
    model = create_model("hmc_net", weights=path).eval()
    assert model.config.stride_in_1x1
    with torch.inference_mode():
        expected = resnet_v1_features(x, state)
        for actual, feature in zip(model.stages(x), expected[1:], strict=True):
            torch.testing.assert_close(actual, feature, rtol=1e-3, atol=1e-3)
        v15 = torchvision_resnet50(num_classes=2).eval()
        v15.load_state_dict({**model.state_dict(), **state}, strict=False)
        wrong = v15.layer2(v15.layer1(v15.maxpool(v15.relu(v15.bn1(v15.conv1(x))))))
        assert (wrong - expected[1]).abs().max() > 0.1


def test_weights_that_do_not_fit_are_refused(tmp_path: Path) -> None:
    state = create_model("resnet18").state_dict()
    good = tmp_path / "resnet18.safetensors"
    save_file({k: v.contiguous() for k, v in state.items()}, good)
    loaded = create_model("hmc_net_resnet18", weights=good)
    assert torch.equal(loaded.conv1.weight, state["conv1.weight"])
    assert not loaded.config.stride_in_1x1
    with pytest.raises(UserError, match="has another shape for|lacks"):
        create_model("resnet50", weights=good)
    pickled = tmp_path / "weights.pth"
    torch.save(state, pickled)
    with pytest.raises(UserError, match="pickled PyTorch file"):
        create_model("resnet18", weights=pickled)
    truncated = tmp_path / "short.safetensors"
    truncated.write_bytes(good.read_bytes()[:-1000])
    with pytest.raises(UserError, match="not a complete safetensors file"):
        create_model("resnet18", weights=truncated)
    with pytest.raises(UserError, match="no such file"):
        create_model("resnet18", weights=tmp_path / "none.safetensors")
