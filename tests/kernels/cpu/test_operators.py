"""Blocked attention as PyTorch sees it: opcheck, compile, export, memory, threads, views."""

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from hmc_fast.kernels import attention, gated_projection, multi_scale_attention, why_not
from hmc_fast.kernels.backend import BackendUnavailableError
from hmc_fast.kernels.cpu import blocks, operators


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    torch.manual_seed(0)
    q = torch.randn(2, 13, 3, 16, dtype=dtype, requires_grad=True)
    ks = [torch.randn(2, n, 3, 16, dtype=dtype, requires_grad=True) for n in (7, 31)]
    vs = [
        torch.randn(2, k.shape[1], 3, d, dtype=dtype, requires_grad=True)
        for k, d in zip(ks, (5, 64), strict=True)
    ]
    return q, ks, vs


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_opcheck(dtype: torch.dtype) -> None:
    q, ks, vs = inputs(dtype)
    registered = torch.ops.hmc_fast
    torch.library.opcheck(registered.attention_forward, (q, ks[0], vs[0], 0.25, "cpu"))
    torch.library.opcheck(registered.multi_scale_attention_forward, (q, ks, vs, 0.25, "cpu"))


def test_opcheck_of_the_backward_ops() -> None:
    q, ks, vs = inputs()
    q, ks, vs = q.detach(), [k.detach() for k in ks], [v.detach() for v in vs]
    outs, lse, weights = operators.multi_scale_attention(q, ks, vs, 0.25)
    torch.library.opcheck(
        torch.ops.hmc_fast.multi_scale_attention_backward,
        (outs, lse, weights, q, ks, vs, outs, lse, weights, 0.25, "cpu"),
    )
    out, lse = operators.attention(q, ks[0], vs[0], 0.25)
    torch.library.opcheck(
        torch.ops.hmc_fast.attention_backward,
        (out, lse, q, ks[0], vs[0], out, lse, 0.25, "cpu"),
    )


class Joint(nn.Module):
    def forward(self, q: Tensor, k1: Tensor, k2: Tensor, v1: Tensor, v2: Tensor) -> Tensor:
        outs, lse, weights = multi_scale_attention(q, [k1, k2], [v1, v2], backend="cpu")
        statistics = [lse.transpose(1, 2)[..., None], weights.transpose(1, 2)]
        return torch.cat([*outs, *statistics], -1)


def test_compiles_and_exports_as_one_node() -> None:
    q, ks, vs = inputs()
    arguments = (q, *ks, *vs)
    expected = Joint()(*arguments)
    compiled = torch.compile(Joint(), fullgraph=True, backend="aot_eager")(*arguments)
    torch.testing.assert_close(compiled, expected)
    cotangent = torch.randn_like(expected)
    for a, b in zip(
        torch.autograd.grad(compiled, arguments, cotangent),
        torch.autograd.grad(expected, arguments, cotangent),
        strict=True,
    ):
        torch.testing.assert_close(a, b)
    detached = tuple(t.detach() for t in arguments)
    program = torch.export.export(Joint(), detached)
    torch.testing.assert_close(program.module()(*detached), expected)


class LargestTensor(TorchDispatchMode):
    """Elements of the largest tensor that any operation returned."""

    elements = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: Any = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (list, tuple)) else [result]:
            if isinstance(tensor, Tensor):
                self.elements = max(self.elements, tensor.numel())
        return result


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_memory_is_bounded_by_the_block(dtype: torch.dtype) -> None:
    q, k, v = (torch.randn(1, 6000, 1, d).to(dtype) for d in (16, 16, 32))
    with LargestTensor() as largest:
        out, lse = operators.attention(q, k, v, 0.25)
        operators.attention_backward(out, lse, q, k, v, out, lse, 0.25)
    block = blocks.FORWARD
    bound = max(blocks.SCORES_AT_ONCE, block.queries * block.keys)
    assert v.numel() <= largest.elements <= bound < 6000 * 6000 // 10


def test_channels_last_features_and_packed_projections_are_not_copied() -> None:
    feature_map = torch.randn(2, 64, 5, 7).to(memory_format=torch.channels_last)
    tokens = feature_map.permute(0, 2, 3, 1).flatten(1, 2).view(2, 35, 2, 32)
    packed = torch.randn(2, 35, 4, 16)
    q, k = packed[:, :, :2], packed[:, :, 2:]
    for view in (tokens, q, k):
        for group in blocks.head_groups(view, 35, blocks.FORWARD):
            assert (
                group.tokens(view).untyped_storage().data_ptr() == view.untyped_storage().data_ptr()
            )
    out, lse = attention(q, k, tokens, backend="cpu")
    expected, expected_lse = attention(q, k, tokens, backend="reference")
    torch.testing.assert_close(out, expected)
    torch.testing.assert_close(lse, expected_lse)


def test_broadcast_views_and_cotangents() -> None:
    q, ks, vs = inputs()
    v = vs[0].detach()[:, :1].expand(2, 7, 3, 5)
    out, _ = attention(q, ks[0], v, backend="cpu")
    torch.testing.assert_close(out, v[:, :1].expand_as(out))
    for cotangent in (torch.ones(()).expand(2, 13, 3, 5), torch.ones(2, 13, 5, 3).mT):
        leaf, other = (q.detach().clone().requires_grad_() for _ in range(2))
        attention(leaf, ks[0].detach(), vs[0].detach(), backend="cpu")[0].backward(cotangent)
        attention(other, ks[0].detach(), vs[0].detach(), backend="reference")[0].backward(cotangent)
        torch.testing.assert_close(leaf.grad, other.grad, rtol=1e-4, atol=1e-6)


def test_what_inference_mode_keeps_is_usable_outside() -> None:
    """Each thread keeps its block of memory; here a new thread meets inference mode first."""
    q, (k, _), (v, _) = inputs()

    def both() -> tuple[Tensor, Tensor]:
        with torch.inference_mode():
            inside, _ = attention(q, k, v, backend="cpu")
        outside, _ = attention(q, k, v, backend="cpu")
        outside.sum().backward()
        return inside.clone(), outside.detach()

    with ThreadPoolExecutor(max_workers=1) as pool:
        inside, outside = pool.submit(both).result()
    assert torch.equal(inside, outside)


def test_threads_do_not_share_blocks() -> None:
    problems = [tuple(torch.randn(1, 200, 2, d) for d in (16, 16, 32)) for _ in range(8)]
    expected = [attention(*problem, backend="cpu")[0] for problem in problems]
    with ThreadPoolExecutor(max_workers=4) as pool:
        for _ in range(5):
            actual = pool.map(lambda problem: attention(*problem, backend="cpu")[0], problems)
            for a, e in zip(actual, expected, strict=True):
                assert torch.equal(a, e)


def test_autocast_stays_outside() -> None:
    q, (k, _), (v, _) = inputs()
    expected, expected_lse = attention(q, k, v, backend="cpu")
    with torch.autocast("cpu", torch.bfloat16):
        out, lse = attention(q, k, v, backend="cpu")
    assert torch.equal(out, expected)
    assert torch.equal(lse, expected_lse)


def test_fp64_stays_with_the_reference() -> None:
    q, (k, _), (v, _) = inputs(torch.float64)
    with pytest.raises(BackendUnavailableError, match=r"float64; cpu needs float16"):
        attention(q, k, v, backend="cpu")
    assert torch.equal(attention(q, k, v)[0], attention(q, k, v, backend="reference")[0])
    on_meta = torch.empty(1, 3, 1, 16, device="meta")
    assert why_not(on_meta, on_meta, on_meta, backend="cpu") == [
        "device of q, k, v is meta; cpu needs a CPU"
    ]


def test_auto_takes_it_on_a_cpu() -> None:
    q, (k, _), (v, _) = inputs()
    assert torch.equal(attention(q, k, v)[0], attention(q, k, v, backend="cpu")[0])


def test_the_gated_projection_is_the_plain_one() -> None:
    x, attended = torch.randn(2, 5, 24), [torch.randn(2, 5, 24)]
    weight, bias, gamma = torch.randn(24, 24), torch.randn(24), torch.randn(24)
    projected = [
        gated_projection(x, attended, weight, bias, gamma, backend=name)
        for name in ("cpu", "auto", "reference")
    ]
    assert torch.equal(projected[0], projected[1])
    assert torch.equal(projected[0], projected[2])
