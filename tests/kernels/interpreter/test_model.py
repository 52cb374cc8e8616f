"""HMC-Net on the fused kernels against HMC-Net on the reference."""

import pytest
import torch
from torch import Tensor

from hmc_fast import create_model
from hmc_fast.kernels import use_backend
from hmc_fast.models import HierarchicalSelfAttention, HMCNet, MultiScaleCrossAttention


@pytest.fixture(scope="module")
def models() -> tuple[HMCNet, HMCNet]:
    """The same parameters behind both backends, with gates that are open."""
    fused, reference = (
        create_model("hmc_net_resnet18", backend=backend) for backend in ("triton", "reference")
    )
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            if name.endswith("gamma"):
                parameter.copy_(torch.rand(parameter.shape, generator=generator))
    fused.load_state_dict(reference.state_dict())
    return fused.eval(), reference.eval()


def images() -> Tensor:
    return torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(1))


def test_logits_and_scale_weights_agree(models: tuple[HMCNet, HMCNet]) -> None:
    fused, reference = models
    with torch.inference_mode():
        (logits, weights), (expected, expected_weights) = (
            model.forward_with_scale_weights(images()) for model in (fused, reference)
        )
    torch.testing.assert_close(logits, expected, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(weights, expected_weights, rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(weights.sum(-1), torch.ones_like(weights[..., 0]))


def test_gradients_agree(models: tuple[HMCNet, HMCNet]) -> None:
    gradients = []
    for model in models:
        model.zero_grad()
        model(images()).square().sum().backward()
        gradients.append({name: p.grad for name, p in model.named_parameters()})
        assert all(gradient is not None for gradient in gradients[-1].values())
    for name, expected in gradients[1].items():
        scale = expected.abs().max().item()
        torch.testing.assert_close(
            gradients[0][name], expected, rtol=1e-3, atol=2e-4 * max(scale, 1e-3), msg=name
        )


def test_backend_by_context(models: tuple[HMCNet, HMCNet]) -> None:
    _, reference = models
    automatic = create_model("hmc_net_resnet18")
    automatic.load_state_dict(reference.state_dict())
    with torch.inference_mode(), use_backend("triton"):
        through_kernels = automatic.eval()(images())
    with torch.inference_mode():
        expected = models[0](images())
    assert torch.equal(through_kernels, expected)


@pytest.mark.parametrize("channels_last", [True, False])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_blocks_keep_layout_and_dtype(channels_last: bool, dtype: torch.dtype) -> None:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    generator = torch.Generator().manual_seed(4)
    source = torch.randn(1, 64, 8, 8, generator=generator).to(dtype).to(memory_format=layout)
    target = torch.randn(1, 256, 4, 4, generator=generator).to(dtype).to(memory_format=layout)
    hsa = HierarchicalSelfAttention(256, backend="triton").to(dtype)
    msca = MultiScaleCrossAttention(256, [64, 256], backend="triton").to(dtype)
    for block in (hsa, msca):
        torch.nn.init.ones_(block.gamma)
    for block, arguments in ((hsa, (target,)), (msca, (target, [source, target]))):
        y = block(*arguments)
        assert y.dtype == dtype
        assert y.is_contiguous(memory_format=layout)
        block.backend = "reference"
        tolerance = 1e-5 if dtype == torch.float32 else 2e-2
        torch.testing.assert_close(y, block(*arguments), rtol=tolerance, atol=tolerance)


def test_an_autocast_step_trains_on_the_fused_kernels() -> None:
    """Half-precision attention inside fp32 parameters: every parameter gets a finite gradient."""
    model = create_model("hmc_net_resnet18", backend="triton").train()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("gamma"):
                parameter.fill_(0.5)
    with torch.autocast("cpu", torch.float16):
        loss = torch.nn.functional.cross_entropy(model(images()).float(), torch.tensor([0, 1]))
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
