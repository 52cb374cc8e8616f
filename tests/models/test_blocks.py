"""The attention blocks against textbook formulas."""

from collections.abc import Sequence

import pytest
import torch
from torch import Tensor, nn

from hmc_fast.kernels.testing import textbook_attention
from hmc_fast.models import (
    HierarchicalSelfAttention,
    MultiScaleCrossAttention,
    attention_blocks,
    create_model,
)


def randomise(module: nn.Module) -> None:
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1)


def test_one_headed_hsa_is_a_non_local_block_with_the_value_projection_in_front() -> None:
    channels = 256
    block = HierarchicalSelfAttention(channels).double()
    randomise(block)
    assert block.heads == 1
    x = torch.randn(2, channels, 6, 5, dtype=torch.float64)

    theta, phi, g = (nn.Conv2d(channels, width, 1).double() for width in (64, 64, channels))
    with torch.no_grad():
        for convolution, rows in ((theta, slice(0, 64)), (phi, slice(64, 128))):
            convolution.weight.copy_(block.qk_proj.weight[rows, :, None, None])
            convolution.bias.copy_(block.qk_proj.bias[rows])
        g.weight.copy_(block.out_proj.weight[:, :, None, None])
        g.bias.zero_()
    scores = theta(x).flatten(2).transpose(1, 2) @ phi(x).flatten(2) / 8
    attended = torch.softmax(scores, -1) @ g(x).flatten(2).transpose(1, 2)
    attended = attended.transpose(1, 2).reshape(x.shape) + block.out_proj.bias[:, None, None]
    expected = x + block.gamma[:, None, None] * attended
    torch.testing.assert_close(block(x), expected, rtol=1e-11, atol=1e-11)


def test_msca_is_attention_over_concatenated_keys() -> None:
    block = MultiScaleCrossAttention(32, [16, 24]).double()
    randomise(block)
    target = torch.randn(2, 32, 3, 3, dtype=torch.float64)
    sources = [
        torch.randn(2, 16, 8, 7, dtype=torch.float64),
        torch.randn(2, 24, 5, 4, dtype=torch.float64),
    ]
    y, weights = block.forward_with_weights(target, sources)

    def tokens(x: Tensor) -> Tensor:
        return x.flatten(2).transpose(1, 2)

    q = block.q_proj(tokens(target)).view(2, 9, 4, 64)
    keys = torch.cat(
        [p(tokens(s)).view(2, -1, 4, 64) for p, s in zip(block.k_projs, sources, strict=True)], 1
    )
    probabilities = torch.softmax(torch.einsum("bmhd,bnhd->bhmn", q, keys) / 8, -1)
    parts = probabilities.split([56, 20], -1)
    attended = [
        torch.einsum("bhmn,bnhd->bmhd", p, tokens(s).view(2, p.shape[-1], 4, -1)).flatten(2)
        for p, s in zip(parts, sources, strict=True)
    ]
    update = block.out_proj(torch.cat(attended, -1)).transpose(1, 2).view(target.shape)
    expected = target + block.gamma[:, None, None] * update
    torch.testing.assert_close(y, expected, rtol=1e-11, atol=1e-11)
    expected_weights = torch.stack([p.sum(-1) for p in parts], -1)
    torch.testing.assert_close(weights, expected_weights, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("channels_last", [True, False])
def test_layout_goes_in_and_out_unchanged(channels_last: bool) -> None:
    layout = torch.channels_last if channels_last else torch.contiguous_format
    block = HierarchicalSelfAttention(512)
    randomise(block)
    x = torch.randn(1, 512, 4, 4)
    y = block(x.to(memory_format=layout))
    assert y.is_contiguous(memory_format=layout)
    torch.testing.assert_close(y, block(x))


def test_values_are_the_feature_map_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    pointers = []

    def spy(q: Tensor, k: Tensor, v: Tensor, backend: str) -> tuple[Tensor, None]:
        pointers.append(v.data_ptr())
        return v, None

    monkeypatch.setattr("hmc_fast.models.blocks.attention", spy)
    x = torch.randn(2, 512, 4, 4).to(memory_format=torch.channels_last)
    HierarchicalSelfAttention(512)(x)
    assert pointers == [x.data_ptr()]


def test_attention_can_be_exchanged_and_is_no_part_of_the_state_dict() -> None:
    block = MultiScaleCrossAttention(32, [16, 8], "reference")
    torch.nn.init.normal_(block.gamma)
    target, sources = torch.randn(2, 32, 2, 3), [torch.randn(2, 16, 4, 6), torch.randn(2, 8, 8, 12)]
    names, expected = list(block.state_dict()), block(target, sources)

    def textbook(
        q: Tensor, ks: Sequence[Tensor], vs: Sequence[Tensor]
    ) -> tuple[list[Tensor], None]:
        return textbook_attention(q, ks, vs, q.shape[-1] ** -0.5)[0], None

    block.attend = textbook
    assert list(block.state_dict()) == names
    torch.testing.assert_close(block(target, sources), expected)
    block.attend = lambda q, ks, vs: ([0 * out for out in textbook(q, ks, vs)[0]], None)
    assert (block(target, sources) - expected).abs().max() > 1e-3
    with pytest.raises(ValueError, match="no weights"):
        block.forward_with_weights(target, sources)


def test_the_attention_blocks_of_a_model_are_listed() -> None:
    with torch.device("meta"):
        assert len(list(attention_blocks(create_model("hmc_net")))) == 4
        assert not list(attention_blocks(create_model("vgg16")))
