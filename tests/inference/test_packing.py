"""A packed convolution gives what the plain one gives, and is the plain one where it must be."""

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hmc_fast.bench.trials import lifelike_model
from hmc_fast.inference import folded, prepare
from hmc_fast.inference.packing import PackedConv2d, pack

GEOMETRIES: list[dict[str, Any]] = [
    {"kernel_size": 3, "padding": 1},
    {"kernel_size": 1, "stride": 2, "bias": False},
    {"kernel_size": 7, "stride": 2, "padding": 3},
    {"kernel_size": 3, "groups": 4, "padding": 2, "dilation": 2},
    {"kernel_size": (3, 5), "stride": (2, 1), "padding": (0, 2)},
]
PACKED, REORDER = "mkldnn::_convolution_pointwise", "aten::mkldnn_reorder_conv2d_weight"
needs_onednn = pytest.mark.skipif(
    not torch.backends.mkldnn.is_available(), reason="PyTorch is built without oneDNN"
)


def images(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    x = torch.randn(shape, generator=torch.Generator().manual_seed(1))
    return x.to(dtype).contiguous(memory_format=torch.channels_last)


def convolution(**geometry: Any) -> nn.Conv2d:
    torch.manual_seed(0)
    return nn.Conv2d(8, 16, **geometry).to(memory_format=torch.channels_last)


def operations(module: nn.Module, x: Tensor) -> set[str]:
    """Names of all that one call does."""
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as recorded:
        module(x)
    return {event.name for event in recorded.events()}


@needs_onednn
@pytest.mark.parametrize("geometry", GEOMETRIES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@torch.inference_mode()
def test_results_are_those_of_plain_convolution(
    geometry: dict[str, Any], dtype: torch.dtype
) -> None:
    """Sizes and batches change from call to call, and so does the layout of the weights."""
    plain = convolution(**geometry)
    packed = PackedConv2d(plain)
    exact = copy.deepcopy(plain).double()
    for shape in ((2, 8, 9, 13), (1, 8, 32, 32), (3, 8, 7, 7), (2, 8, 9, 13)):
        x = images(*shape)
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            result, expected = packed(x), plain(x)
        assert (result.dtype, result.stride()) == (dtype, expected.stride())
        truth = exact(x.double())
        allowed = (expected.double() - truth).abs().max() + torch.finfo(
            dtype
        ).eps * truth.abs().max()
        assert (result.double() - truth).abs().max() <= allowed


@needs_onednn
@torch.inference_mode()
def test_weights_are_packed_once_for_a_size_and_a_dtype() -> None:
    packed = PackedConv2d(convolution(kernel_size=3))
    x, other = images(2, 8, 9, 13), images(2, 8, 16, 16)
    assert REORDER in operations(packed, x)
    assert PACKED in operations(packed, x)
    assert REORDER not in operations(packed, x)
    assert REORDER not in operations(packed, x[:1])
    assert REORDER in operations(packed, other)


@needs_onednn
@torch.no_grad()
def test_changed_parameters_are_packed_again() -> None:
    packed, x = PackedConv2d(convolution(kernel_size=3)), images(2, 8, 9, 13)
    before = packed(x)
    packed.load_state_dict({name: 2 * value for name, value in packed.state_dict().items()})
    torch.testing.assert_close(packed(x), 2 * before)
    packed.bias.zero_()
    after = packed(x)
    packed.weight.data = 2 * packed.weight.data
    torch.testing.assert_close(packed(x), 2 * after)
    with torch.inference_mode():
        made_inside = PackedConv2d(convolution(kernel_size=3))
        assert torch.equal(made_inside(x), made_inside(x))


@needs_onednn
def test_gradients_pass_and_are_those_of_plain_convolution() -> None:
    plain = convolution(kernel_size=3)
    packed = PackedConv2d(plain)
    with torch.no_grad():
        packed(images(2, 8, 9, 13))
    gradients = []
    for module in (plain, packed):
        x = images(2, 8, 9, 13).requires_grad_()
        gradients.append(torch.autograd.grad(module(x).square().sum(), [x, plain.weight]))
    for a, b in zip(*gradients, strict=True):
        assert torch.equal(a, b)


@torch.no_grad()
def test_what_packed_weights_do_not_serve_is_plain_convolution(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    plain = convolution(kernel_size=3)
    packed = PackedConv2d(plain)
    served = [
        images(2, 8, 9, 13).contiguous()[0],
        images(2, 8, 9, 13)[:0],
        images(1, 8, 9, 13).expand(2, 8, 9, 13)[:, :, ::2],
    ]
    for x in served:
        assert torch.equal(packed(x), plain(x))
    refused = [
        images(2, 8, 2, 2),
        images(2, 7, 9, 9),
        images(2, 8, 9, 9, dtype=torch.float64),
        images(2, 8, 9, 9, dtype=torch.int64),
        images(2, 8, 9, 9, dtype=torch.bfloat16),
    ]
    for x in refused:
        with pytest.raises(RuntimeError) as expected:
            plain(x)
        with pytest.raises(RuntimeError) as raised:
            packed(x)
        assert str(raised.value) == str(expected.value)
    contiguous = nn.Conv2d(8, 16, 3)
    x = torch.randn(2, 8, 9, 13)
    assert PackedConv2d(contiguous)(x).is_contiguous()
    monkeypatch.setattr(torch.backends.mkldnn, "enabled", False)
    assert PACKED not in operations(packed, images(2, 8, 9, 13))
    monkeypatch.undo()
    double = PackedConv2d(convolution(kernel_size=3).double())
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(
            double(images(2, 8, 9, 13).double()), double(images(2, 8, 9, 13).double())
        )


@needs_onednn
@torch.inference_mode()
def test_copies_and_pickles_pack_for_themselves() -> None:
    packed = PackedConv2d(convolution(kernel_size=3))
    x = images(2, 8, 9, 13)
    expected = packed(x)
    for other in (copy.deepcopy(packed), pickle.loads(pickle.dumps(packed))):  # noqa: S301
        assert torch.equal(other(x), expected)


def test_what_is_replaced() -> None:
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3),
        nn.Conv2d(8, 8, 3, padding=1, padding_mode="reflect"),
        nn.Conv2d(8, 8, 3, padding="same"),
        nn.Sequential(nn.Conv2d(8, 8, 3)),
    )
    before = dict(model.state_dict())
    pack(model)
    kinds = [type(m) for m in model.modules() if isinstance(m, nn.Conv2d)]
    assert kinds == [PackedConv2d, nn.Conv2d, nn.Conv2d, PackedConv2d]
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(after[name].data_ptr() == value.data_ptr() for name, value in before.items())


@needs_onednn
@pytest.mark.parametrize("precision", ["fp32", "bf16"])
@torch.inference_mode()
def test_the_prepared_model_lays_no_weights_out_in_its_second_call(precision: str) -> None:
    model = lifelike_model("hmc_net_lesions", 64)
    prepared = prepare(model, precision=precision)
    x = torch.randn(2, 3, 64, 64)
    prepared(x)
    names = operations(prepared, x)
    assert PACKED in names
    assert REORDER not in names
    plain = folded(model)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16"):
        expected = plain(x)
    torch.testing.assert_close(prepared(x), expected, rtol=1e-5, atol=1e-5)
