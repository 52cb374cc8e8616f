"""The prepared model: the given one's logits within the error budget, the given one untouched."""

import copy
import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from hmc_fast import UserError
from hmc_fast.bench.parity import PARITY_FILMS, LogitTruth
from hmc_fast.bench.trials import lifelike_model
from hmc_fast.inference import folded, prepare
from hmc_fast.kernels.backend import UnknownBackendError
from hmc_fast.models import attention_blocks

SIZE = 64
PEAK_MIB = 1.3 * 1024
NORMS = {
    "hmc_net": 53,
    "hmc_net_resnet18_lesions": 20,
    "resnet50_hsa": 53,
    "resnet50_msca": 53,
    "resnet18": 20,
}


def films() -> Tensor:
    """As many as the benchmark's parity takes: few logits make a chance yardstick."""
    return torch.randn(PARITY_FILMS, 3, SIZE, SIZE, generator=torch.Generator().manual_seed(0))


def assert_same_logits(call: Callable[[Tensor], Tensor], model: nn.Module) -> None:
    """Within the budget that peers are held to, with the given model as the yardstick."""
    truth = LogitTruth(copy.deepcopy(model).double(), model, films())
    use = truth.check(call, PARITY_FILMS)
    assert use.within, use


def norms(model: nn.Module) -> int:
    return sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())


@pytest.mark.parametrize(
    "name", [*NORMS, *(pytest.param(n, marks=pytest.mark.systems) for n in ("vgg16", "vit_b_16"))]
)
def test_logits_within_the_budget_and_the_model_untouched(name: str) -> None:
    model = lifelike_model(name, SIZE).train()
    before = copy.deepcopy(model.state_dict())
    prepared = prepare(model)
    with torch.no_grad():
        prepared(films())
    assert all(m.training for m in model.modules())
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[key], value) for key, value in before.items())
    assert norms(model) == NORMS.get(name, 0)
    assert norms(prepared) == 0
    assert_same_logits(prepared, model.eval())
    if name not in NORMS:
        assert torch.equal(prepared(films()), model(films()))


@pytest.mark.parametrize("name", ["hmc_net_resnet18", "resnet18"])
def test_folding_is_exact(name: str) -> None:
    model = lifelike_model(name, SIZE).double()
    images = films().double()
    with torch.no_grad():
        torch.testing.assert_close(folded(model)(images), model(images), rtol=1e-11, atol=1e-11)


class Wrapper(nn.Module):
    """Around a model of the registry, with layers of its own that only look foldable."""

    def __init__(self, net: nn.Module) -> None:
        super().__init__()
        self.net = net
        self.conv1 = nn.Conv2d(3, 3, 1)
        self.bn1 = nn.BatchNorm2d(3)
        self.tail = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.BatchNorm2d(3))

    def forward(self, x: Tensor) -> Tensor:
        """The norm stands before the convolution, whatever their names say."""
        y: Tensor = self.net(self.conv1(self.bn1(x))) + self.tail(x).mean((2, 3))[:, :2]
        return y


def test_a_module_around_a_model_is_folded_where_its_order_is_known() -> None:
    wrapper = Wrapper(lifelike_model("resnet18", SIZE)).double()
    wrapper.train()(3 * films().double() + 1)
    prepared = prepare(wrapper.eval())
    assert norms(prepared) == 2
    images = films().double()
    with torch.no_grad():
        torch.testing.assert_close(prepared(images), wrapper(images), rtol=1e-11, atol=1e-11)


def test_convolutions_with_a_bias_and_without() -> None:
    torch.manual_seed(0)
    layers = [nn.Conv2d(3, 8, 3, bias=True), nn.BatchNorm2d(8), nn.Conv2d(8, 4, 1, bias=False)]
    model = nn.Sequential(*layers, nn.BatchNorm2d(4), nn.BatchNorm2d(4))
    model.train()(torch.randn(4, 3, 16, 16) * 3 + 1)
    model.eval()
    assert norms(folded(model)) == 1
    images = torch.randn(2, 3, 16, 16, dtype=torch.float64)
    with torch.no_grad():
        expected = model.double()(images)
        torch.testing.assert_close(folded(model)(images), expected, rtol=1e-12, atol=1e-12)


def test_gradients_and_hooks_at_feature_maps_are_the_same() -> None:
    model = lifelike_model("hmc_net_resnet18", SIZE)
    image = torch.randn(1, 3, SIZE, SIZE)

    def looked_at(net: nn.Module) -> list[Tensor]:
        maps: list[Tensor] = []
        for layer in ("layer2.0.downsample.1", "layer3", "msca"):
            net.get_submodule(layer).register_forward_hook(lambda *x: maps.append(x[2]))
        logits = net(image)
        return [*maps, *torch.autograd.grad(logits[0, 1], maps)]

    for a, b in zip(looked_at(folded(model)), looked_at(model), strict=True):
        assert a.abs().max() > 0
        torch.testing.assert_close(a, b, rtol=1e-3, atol=1e-4 * b.detach().abs().max().item())


def test_a_kept_convolution_gives_what_it_gave() -> None:
    model = lifelike_model("resnet18", SIZE)
    kept = folded(model, keep=["layer4.1.conv2"])
    assert norms(kept) == 1
    assert torch.equal(kept.layer4[1].conv2.weight, model.layer4[1].conv2.weight)


def test_precision_and_backend() -> None:
    model = lifelike_model("hmc_net_resnet18", SIZE)
    images = torch.randn(2, 3, SIZE, SIZE)
    prepared = prepare(model, precision="bf16", backend="cpu")
    assert {block.backend for block in attention_blocks(prepared)} == {"cpu"}
    assert {block.backend for block in attention_blocks(model)} == {"reference"}
    with torch.no_grad():
        low = prepared(images)
        with torch.autocast("cpu", torch.bfloat16):
            assert torch.equal(low, prepared.model(images))
            assert prepare(model)(images).dtype == torch.float32
    with pytest.raises(UserError, match="unknown precision 'int8'"):
        prepare(model, precision="int8")
    with pytest.raises(UnknownBackendError):
        prepare(model, backend="tpu")


@pytest.mark.systems
def test_compiled_logits_are_within_the_budget() -> None:
    model = lifelike_model("hmc_net_resnet18", SIZE)
    assert_same_logits(prepare(model, compile=True), model)


PEAK = """
import torch
from hmc_fast.bench.measuring.memory import process_peak_mib
from hmc_fast.inference import prepare
from hmc_fast.models import create_model
model = prepare(create_model("hmc_net"))
images = torch.rand(1, 3, 1024, 1024)
with torch.inference_mode():
    print(process_peak_mib(lambda: model(images), images.device))
"""


@pytest.mark.systems
def test_a_film_of_1024_takes_at_most_1_3_gib() -> None:
    """All that a process of its own holds."""
    done = subprocess.run([sys.executable, "-c", PEAK], capture_output=True, text=True, check=True)
    assert float(done.stdout) <= PEAK_MIB
