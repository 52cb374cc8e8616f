"""The lesion head on its own and joined with HMC-Net: gradients, tracing, export, exact maxima."""

import io
from collections.abc import Callable

import numpy as np
import onnxruntime
import pytest
import torch
from scipy.ndimage import gaussian_filter
from torch import Tensor

from hmc_fast import UserError
from hmc_fast.data import Preprocessing
from hmc_fast.models import HMCNet, create_model
from hmc_fast.models.lesion_head import (
    READOUTS,
    SMOOTHING,
    LesionHead,
    black_level,
    breast_cells,
    lesion_features,
)

NATIVE = Preprocessing(96, 64, native=True)
BLACK = black_level(NATIVE.mean[0], NATIVE.std[0])


def images(batch: int = 2, height: int = 96, width: int = 64, seed: int = 0) -> Tensor:
    """Normalised random breasts at the left on black ground."""
    generator = torch.Generator().manual_seed(seed)
    grey = 0.05 + 0.9 * torch.rand(batch, 1, height, width, generator=generator)
    grey[..., width // 2 :] = 0
    return torch.stack([NATIVE.normalise(image) for image in grey])


def joined(name: str) -> tuple[HMCNet, LesionHead]:
    """A model, and its head as if it had been fitted."""
    torch.manual_seed(0)
    net = create_model(f"{name}_lesions").eval()
    assert isinstance(net, HMCNet)
    assert net.lesion_head is not None
    net.lesion_head.black.fill_(BLACK)
    net.lesion_head.slope.fill_(0.8)
    net.lesion_head.offset.fill_(-0.3)
    return net, net.lesion_head


def test_the_maps_are_a_linear_function_of_averages_and_maxima() -> None:
    torch.manual_seed(0)
    head = LesionHead(3, 5)
    c3, c4 = torch.randn(2, 3, 6, 4), torch.randn(2, 5, 3, 2)
    maps = head.lesion_maps(c3, c4)
    assert maps.shape == (2, 3, 3, 2)
    patch = c3[1, :, 2:4, 2:4].flatten(1)
    cell = torch.cat([patch.mean(1), patch.amax(1), c4[1, :, 1, 1]])
    expected = head.maps.weight[:, :, 0, 0] @ cell + head.maps.bias
    torch.testing.assert_close(maps[1, :, 1, 1], expected)


READ: dict[str, Callable[[np.ndarray], float]] = {
    "maximum": lambda cells: cells.max(),
    "top_cells": lambda cells: np.sort(cells)[-10:].mean(),
    "mean": lambda cells: cells.mean(),
}


@pytest.mark.parametrize("readout", READOUTS)
@pytest.mark.parametrize("width", [1, 7])
def test_the_film_logit_reads_the_smoothed_map_within_the_breast(readout: str, width: int) -> None:
    maps = torch.randn(3, 3, 20, 12, generator=torch.Generator().manual_seed(1))
    breast = torch.zeros(3, 1, 20, 12, dtype=torch.bool)
    breast[:, :, 3 : 3 + width, :width] = True
    logit = LesionHead(2, 2, readout).score(maps, breast)
    assert torch.equal(LesionHead(2, 2).score(maps, breast, readout), logit)
    for film in range(3):
        inside = breast[film, 0].numpy()
        smoothed = gaussian_filter(maps[film, 0].double().numpy(), SMOOTHING, mode="nearest")
        expected = READ[readout](smoothed[inside]) + READ[readout](maps[film, 1].numpy()[inside])
        assert float(logit[film]) == pytest.approx(expected, abs=1e-5)
        third = READ[readout](maps[film, 2].numpy()[inside])
        all_maps = LesionHead(2, 2, readout).score(maps, breast, counted=3)
        assert float(all_maps[film]) == pytest.approx(expected + third, abs=1e-5)


def test_cells_of_the_breast_come_from_the_image() -> None:
    x = images()
    assert breast_cells(x, BLACK)[0, 0].tolist() == [[True, True, False, False]] * 6
    black = NATIVE.normalise(torch.zeros(1, 64, 64))[None]
    assert breast_cells(black, BLACK).all()
    both = torch.cat([x[:, :, :64], black])
    assert breast_cells(both, BLACK)[:, 0, 0, -1].tolist() == [False, False, True]


def test_gradients_are_those_of_finite_differences() -> None:
    torch.manual_seed(0)
    head = LesionHead(2, 3).double()
    c3 = torch.randn(2, 2, 8, 6, dtype=torch.float64, requires_grad=True)
    c4 = torch.randn(2, 3, 4, 3, dtype=torch.float64, requires_grad=True)
    breast = torch.ones(2, 1, 4, 3, dtype=torch.bool)

    def logit(c3: Tensor, c4: Tensor, weight: Tensor) -> Tensor:
        maps = torch.nn.functional.conv2d(lesion_features(c3, c4), weight, head.maps.bias)
        return head.score(maps, breast)

    assert torch.autograd.gradcheck(logit, (c3, c4, head.maps.weight))
    logit(c3, c4, head.maps.weight).sum().backward()
    gradient = head.maps.weight.grad
    assert gradient is not None
    assert gradient[:2].abs().sum() > 0


@pytest.mark.parametrize("name", ["resnet18", "resnet18_hsa", "resnet18_msca", "hmc_net_resnet18"])
def test_the_head_alone_decides_at_first_and_the_network_can_join(name: str) -> None:
    model, head = joined(name)
    x = images()
    logits = model(x)
    stages = model.stages(x)
    margin = head.margin(head.lesion_maps(*stages[:2]), breast_cells(x, BLACK))
    torch.testing.assert_close(logits, torch.stack([-margin / 2, margin / 2], 1))
    maps = model.lesion_maps(x)
    torch.testing.assert_close(margin, 0.8 * head.score(maps, breast_cells(x, BLACK)) - 0.3)
    torch.nn.functional.cross_entropy(logits, torch.tensor([0, 1])).backward()
    assert head.net_weight.grad is not None
    assert head.net_weight.grad != 0
    with torch.no_grad():
        head.net_weight.fill_(0.5)
    whole = model.classify(model.fuse(stages))
    torch.testing.assert_close(model(x), logits + 0.5 * whole)


def test_scale_weights_come_with_the_joined_logits() -> None:
    model, head = joined("resnet18_msca")
    with torch.no_grad():
        head.net_weight.fill_(0.5)
        logits, weights = model.forward_with_scale_weights(images())
        torch.testing.assert_close(logits, model(images()))
    assert weights.shape == (2, 4, 3, 2, 2)


def test_the_head_reads_the_features_of_hmc_net() -> None:
    torch.manual_seed(0)
    net = create_model("hmc_net_lesions").eval()
    assert isinstance(net, HMCNet)
    x = images(1, 64, 64)
    with torch.inference_mode():
        assert net.lesion_maps(x).shape == (1, 3, 4, 4)
        stages, early = net.stages(x), net.early_stages(x)
    for stage, alone in zip(stages, early, strict=False):
        assert torch.equal(stage, alone)


def test_before_the_fit_every_pixel_is_the_breasts() -> None:
    head = LesionHead(2, 2)
    assert breast_cells(torch.full((1, 3, 32, 32), -3.0), head.black).all()
    assert torch.isfinite(head.black.half())


def test_a_head_tells_two_classes_apart_and_no_more() -> None:
    with pytest.raises(UserError, match="tells two classes apart, not 3"):
        create_model("resnet18_lesions", num_classes=3)
    plain = create_model("resnet18")
    assert isinstance(plain, HMCNet)
    with pytest.raises(ValueError, match="has no lesion head"):
        plain.lesion_maps(images())


def test_it_traces_without_a_break() -> None:
    model, head = joined("hmc_net_resnet18")
    program = torch.export.export(model, (images(),))
    torch.testing.assert_close(program.module()(images(seed=3)), model(images(seed=3)))
    compiled = torch.compile(head, backend="eager", fullgraph=True)
    parts = images(1), torch.randn(1, 128, 12, 8), torch.randn(1, 256, 6, 4), torch.randn(1, 2)
    torch.testing.assert_close(compiled(*parts), head(*parts))


@pytest.mark.parametrize("readout", READOUTS)
def test_onnx_runtime_reads_out_alike(readout: str) -> None:
    class Readout(torch.nn.Module):
        def forward(self, maps: Tensor, x: Tensor) -> Tensor:
            return LesionHead(1, 1, readout).score(maps, breast_cells(x, BLACK))

    maps, x = torch.randn(2, 3, 6, 4), images()
    program = torch.onnx.export(Readout().eval(), (maps, x), dynamo=True, opset_version=20)
    assert program is not None
    content = io.BytesIO()
    program.save(content)
    session = onnxruntime.InferenceSession(content.getvalue())
    names = [node.name for node in session.get_inputs()]
    inputs = {"maps": torch.randn(2, 3, 6, 4), "x": images(seed=7)}
    (logits,) = session.run(None, {name: inputs[name].numpy() for name in names})
    np.testing.assert_allclose(logits, Readout()(**inputs).numpy(), atol=1e-5)


def test_onnx_runtime_computes_the_same_logits() -> None:
    model, _ = joined("resnet18")
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.onnx.export(
        model, (images(),), dynamo=True, opset_version=20, dynamic_shapes=({0: batch},)
    )
    assert program is not None
    content = io.BytesIO()
    program.save(content)
    session = onnxruntime.InferenceSession(content.getvalue())
    x = torch.cat([images(2, seed=5), images(1, seed=6)])
    (logits,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.inference_mode():
        np.testing.assert_allclose(logits, model(x).numpy(), atol=1e-4)
