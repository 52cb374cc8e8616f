"""Wrong calls name the argument; backends are chosen as documented and never fall back."""

import pytest
import torch
from torch import Tensor

from hmc_fast.kernels import (
    CAPABILITIES,
    Problem,
    attention,
    capability,
    multi_scale_attention,
    resolve_backend,
    use_backend,
    why_not,
)
from hmc_fast.kernels.backend import BackendUnavailableError


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


def test_an_explicit_backend_never_falls_back(monkeypatch: pytest.MonkeyPatch) -> None:
    good = tensors()
    with pytest.raises(BackendUnavailableError, match="chosen by argument.*compute capability"):
        attention(**good, backend="triton")
    with use_backend("triton"):
        with pytest.raises(BackendUnavailableError, match="chosen by use_backend"):
            attention(**good)
        attention(**good, backend="reference")
    monkeypatch.setenv("HMC_FAST_BACKEND", "triton")
    with pytest.raises(BackendUnavailableError, match="chosen by HMC_FAST_BACKEND"):
        attention(**good)
    with use_backend("reference"):
        attention(**good)
    monkeypatch.setenv("HMC_FAST_BACKEND", "cudnn")
    with pytest.raises(ValueError, match="HMC_FAST_BACKEND is 'cudnn'"):
        attention(**good)
    with pytest.raises(ValueError, match="backend is 'flash'; it must be one of"):
        attention(**good, backend="flash")


def test_auto_says_why() -> None:
    good = tensors()
    choice = resolve_backend("auto", Problem.of_attention(good["q"], [good["v"]]))
    assert choice.name == "cpu"
    assert "the fastest on cpu" in choice.why
    exact = {name: tensor.double() for name, tensor in good.items()}
    choice = resolve_backend("auto", Problem.of_attention(exact["q"], [exact["v"]]))
    assert choice.name == "reference"
    assert "dtype of q, k, v is torch.float64; cpu needs float16" in choice.why
    meta = good["q"].to("meta")
    choice = resolve_backend("auto", Problem.of_attention(meta, [meta]))
    assert choice.name == "reference"
    assert "no kernels of ours for meta" in choice.why


def test_why_not_lists_every_limit_hit() -> None:
    q = torch.randn(1, 2, 1, 8, dtype=torch.float64)
    v = torch.randn(1, 2, 1, 4096, dtype=torch.float64)
    reasons = why_not(q, q, v)
    for part in ("head dim of q and k is 8", "head dim of v is 4096", "float64", "cpu"):
        assert any(part in reason for reason in reasons)
    assert why_not(q, q, v, backend="reference") == []
    assert {limit.backend for limit in CAPABILITIES} == {"reference", "cpu", "triton"}


def test_an_interpreter_that_a_newer_numpy_breaks_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    q = torch.randn(1, 3, 1, 16)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(capability, "TRITON_RELEASE", (3, 6))
    monkeypatch.setattr(capability, "NUMPY_RELEASE", (2, 4))
    assert why_not(q, q, q) == [
        "the installed numpy under Triton's interpreter is 2.4; triton needs numpy before 2.4 or "
        "triton 3.7 and newer"
    ]
    monkeypatch.setattr(capability, "NUMPY_RELEASE", (2, 3))
    assert why_not(q, q, q) == []
