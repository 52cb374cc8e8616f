"""Wrong calls name the argument."""

import pytest
import torch
from torch import Tensor

from hmc_fast.kernels import attention, multi_scale_attention


def tensors(**shapes: tuple[int, ...]) -> dict[str, Tensor]:
    default = {"q": (2, 5, 3, 16), "k": (2, 7, 3, 16), "v": (2, 7, 3, 32)}
    return {name: torch.randn(shape) for name, shape in (default | shapes).items()}


@pytest.mark.parametrize(
    ("shapes", "message"),
    [
        ({"k": (2, 7, 3, 8)}, "k has head dim 8, q has 16"),
        ({"k": (1, 7, 3, 16)}, "k has batch 1 and 3 heads, q has batch 2"),
        ({"v": (2, 7, 4, 32)}, "v has batch 2 and 4 heads"),
        ({"v": (2, 6, 3, 32)}, "v has 6 tokens, k has 7"),
        ({"q": (2, 5, 48)}, "q must have 4 dimensions"),
        ({"k": (2, 0, 3, 16), "v": (2, 0, 3, 32)}, "k has an empty dimension"),
    ],
)
def test_shapes_that_do_not_fit(shapes: dict[str, tuple[int, ...]], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attention(**tensors(**shapes))


def test_dtype_device_stride_and_kind_are_checked() -> None:
    good = tensors()
    with pytest.raises(TypeError, match=r"k is torch\.float16 but q is torch\.float32"):
        attention(good["q"], good["k"].half(), good["v"])
    with pytest.raises(TypeError, match="v must be a floating-point tensor, got torch.int64"):
        attention(good["q"], good["k"], good["v"].long())
    with pytest.raises(ValueError, match="v is on meta but q is on cpu"):
        attention(good["q"], good["k"], good["v"].to("meta"))
    strided = torch.randn(2, 7, 16, 3).transpose(2, 3)
    with pytest.raises(ValueError, match="k has inner stride 3.*contiguous"):
        attention(good["q"], strided, good["v"])
    with pytest.raises(ValueError, match="ks and vs need one tensor per source each, got 2 and 1"):
        multi_scale_attention(good["q"], [good["k"], good["k"]], [good["v"]])
    with pytest.raises(ValueError, match=r"vs\[1\] has 6 tokens, ks\[1\] has 7"):
        multi_scale_attention(good["q"], [good["k"]] * 2, [good["v"], torch.randn(2, 6, 3, 32)])


def test_heads_before_tokens_are_taken_by_name_and_given_back_so() -> None:
    x = tensors()
    out, lse = attention(**x)
    swapped = {name: tensor.transpose(1, 2).contiguous() for name, tensor in x.items()}
    other, other_lse = attention(**swapped, layout="bhnd")
    assert other.shape == (2, 3, 5, 32)
    torch.testing.assert_close(other.transpose(1, 2), out)
    torch.testing.assert_close(other_lse, lse)
    sdpa = torch.nn.functional.scaled_dot_product_attention(*swapped.values())
    torch.testing.assert_close(other, sdpa, atol=1e-5, rtol=1e-5)
    outs, _, weights = multi_scale_attention(
        swapped["q"], [swapped["k"]], [swapped["v"]], layout="bhnd"
    )
    torch.testing.assert_close(outs[0], other)
    assert weights.shape == (2, 3, 5, 1)


def test_shapes_that_look_like_the_other_layout_are_refused_unless_named() -> None:
    x = tensors(q=(1, 4, 100, 16), k=(1, 4, 100, 16), v=(1, 4, 100, 32))
    with pytest.raises(ValueError, match=r"4 tokens and 100 heads.*layout=\"bhnd\""):
        attention(**x)
    with pytest.raises(ValueError, match="4 tokens and 100 heads"):
        multi_scale_attention(x["q"], [x["k"]], [x["v"]])
    assert attention(**x, layout="bnhd")[0].shape == (1, 4, 100, 32)
    assert attention(**x, layout="bhnd")[0].shape == (1, 4, 100, 32)
    with pytest.raises(ValueError, match="layout is 'bsnd'; it must be one of bnhd, bhnd"):
        attention(**x, layout="bsnd")
