"""The fused kernels as PyTorch sees them: opcheck, compile, export, copies, refusals."""

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from hmc_fast.kernels import (
    attention,
    gated_projection,
    multi_scale_attention,
    ops,
    use_backend,
    why_not,
)
from hmc_fast.kernels.backend import BackendUnavailableError
from hmc_fast.kernels.fused import operators
from hmc_fast.kernels.fused.launch import Launch


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    torch.manual_seed(0)
    q = torch.randn(2, 13, 3, 16, dtype=dtype, requires_grad=True)
    ks = [torch.randn(2, n, 3, 16, dtype=dtype, requires_grad=True) for n in (7, 31)]
    vs = [
        torch.randn(2, k.shape[1], 3, d, dtype=dtype, requires_grad=True)
        for k, d in zip(ks, (20, 64), strict=True)
    ]
    return q, ks, vs


@pytest.fixture
def _unpoisoned() -> None:
    """Opcheck compares memory that operators leave untouched on purpose."""
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("_unpoisoned")
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_opcheck(dtype: torch.dtype) -> None:
    q, ks, vs = inputs(dtype)
    registered = torch.ops.hmc_fast
    torch.library.opcheck(registered.attention_forward, (q, ks[0], vs[0], 0.25, "triton"))
    torch.library.opcheck(registered.multi_scale_attention_forward, (q, ks, vs, 0.25, "triton"))
    x = torch.randn(2, 5, 24, dtype=dtype, requires_grad=True)
    attended = [torch.randn(2, 5, w, dtype=dtype, requires_grad=True) for w in (16, 40)]
    weight = torch.randn(24, 56, dtype=dtype, requires_grad=True)
    bias, gamma = (torch.randn(24, requires_grad=True) for _ in range(2))
    torch.library.opcheck(registered.gated_projection_forward, (x, attended, weight, bias, gamma))


class Block(nn.Module):
    """Both operators and the projection, in one graph."""

    def forward(self, q: Tensor, k1: Tensor, k2: Tensor, v1: Tensor, v2: Tensor) -> Tensor:
        outs, _, weights = multi_scale_attention(q, [k1, k2], [v1, v2])
        single, lse = attention(q, k1, v1)
        projected = gated_projection(
            single.flatten(2),
            [out.flatten(2) for out in outs],
            torch.ones(60, 252, dtype=q.dtype),
            torch.ones(60),
            torch.ones(60),
        )
        return projected.sum(-1) + lse.sum(1) + weights.square().sum((1, 3))


def test_compiles_in_full_graphs_forward_and_backward() -> None:
    q, ks, vs = inputs()
    leaves = (q, *ks, *vs)
    with use_backend("triton"):
        compiled = torch.compile(Block(), fullgraph=True, backend="aot_eager")
        actual, expected = compiled(*leaves), Block()(*leaves)
        torch.testing.assert_close(actual, expected)
        cotangent = torch.randn_like(expected)
        for a, b in zip(
            torch.autograd.grad(actual, leaves, cotangent),
            torch.autograd.grad(expected, leaves, cotangent),
            strict=True,
        ):
            torch.testing.assert_close(a, b)


def test_exports_with_a_dynamic_batch_and_decomposes() -> None:
    arguments = tuple(t.detach() for t in (lambda q, ks, vs: (q, *ks, *vs))(*inputs()))
    batch = torch.export.Dim("batch", min=1, max=64)
    with use_backend("triton"):
        program = torch.export.export(Block(), arguments, dynamic_shapes=[{0: batch}] * 5)
        names = {str(node.target) for node in program.graph.nodes}
        assert any("gated_projection_forward" in name for name in names)
        plain = program.run_decompositions(ops.decompositions())
        assert not any("hmc_fast" in str(node.target) for node in plain.graph.nodes)
        other = tuple(torch.cat([t, t, t]) for t in arguments)
        expected = Block()(*other)
    for exported in (program, plain):
        torch.testing.assert_close(exported.module()(*other), expected, rtol=1e-4, atol=1e-4)


class CountsAllocations(TorchDispatchMode):
    """Records every operation that makes a new tensor."""

    def __init__(self) -> None:
        super().__init__()
        self.made: list[str] = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        self.made.append(str(func))
        return func(*args, **(kwargs or {}))


def test_a_channels_last_map_goes_in_without_a_copy(monkeypatch: pytest.MonkeyPatch) -> None:
    launched: list[Launch] = []

    def record(x: Tensor, launches: list[Launch]) -> None:
        """Nothing is launched: the interpreter makes tensors of its own."""
        launched.extend(launches)

    monkeypatch.setattr(operators, "run", record)
    feature_map = torch.randn(2, 64, 5, 7).to(memory_format=torch.channels_last)
    tokens = feature_map.permute(0, 2, 3, 1).flatten(1, 2).unflatten(2, (2, 32))
    qk = torch.randn(2, 35, 4, 16)
    q, k = qk[:, :, :2], qk[:, :, 2:]
    with CountsAllocations() as counted:
        out, lse = operators.attention(q, k, tokens, 0.25)
    assert all("new_" in name for name in counted.made), counted.made
    assert len(counted.made) == 3, (
        counted.made
    )  # out, lse and the weight that one source does not have
    with CountsAllocations() as counted:
        operators.attention_backward(out, lse, q, k, tokens, out, lse, 0.25)
    assert all("empty" in name for name in counted.made), counted.made
    assert len(counted.made) == 5, counted.made  # dq, dk, dv and two rows of statistics
    for launch in launched:
        pointers = launch.arguments
        if "v_ptrs" in pointers:
            assert pointers["v_ptrs"][0].data_ptr() == feature_map.data_ptr()
            assert pointers["q_ptr"].data_ptr() == qk.data_ptr()
            assert pointers["k_ptrs"][0].data_ptr() == qk[:, :, 2:].data_ptr()


def test_broadcast_and_far_flung_views_are_copied_and_right() -> None:
    q, ks, vs = (t if isinstance(t, list) else t.detach() for t in inputs())
    k, v = ks[0].detach(), vs[0].detach()[:, :1].expand(2, 7, 3, 20)
    out, _ = attention(q, k, v, backend="triton")
    torch.testing.assert_close(out, v[:, :1].expand_as(out))
    for cotangent in (
        torch.ones(()).expand(2, 13, 3, 20),
        torch.ones(2, 13, 20, 3).transpose(2, 3),
    ):
        leaf = q.clone().requires_grad_()
        attention(leaf, k, vs[0].detach(), backend="triton")[0].backward(cotangent)
        reference = q.clone().requires_grad_()
        attention(reference, k, vs[0].detach(), backend="reference")[0].backward(cotangent)
        torch.testing.assert_close(leaf.grad, reference.grad, rtol=1e-4, atol=1e-6)


def test_bf16_is_refused_with_its_reason() -> None:
    q = torch.randn(1, 3, 1, 16, dtype=torch.bfloat16)
    with pytest.raises(BackendUnavailableError, match="products of bfloat16 are wrong"):
        attention(q, q, q, backend="triton")
    assert why_not(q.half(), q.half(), q.half()) == []


def test_wrong_calls_name_what_is_wrong() -> None:
    q = torch.randn(1, 3, 1, 16)
    narrow = torch.randn(1, 3, 1, 8)
    for k, v, message in (
        (q, narrow, "head dim of v is 8; triton needs 16 to 2048"),
        (q, torch.randn(1, 3, 1, 4096), "head dim of v is 4096"),
    ):
        with pytest.raises(BackendUnavailableError, match=message):
            attention(q, k, v, backend="triton")
    with pytest.raises(BackendUnavailableError, match="head dim of q and k is 8"):
        attention(narrow, narrow, q, backend="triton")
    with pytest.raises(BackendUnavailableError, match="sources is 9; triton needs 1 to 8"):
        multi_scale_attention(q, [q] * 9, [q] * 9, backend="triton")
    with pytest.raises(BackendUnavailableError, match="float64"):
        attention(q.double(), q.double(), q.double(), backend="triton")


def test_double_backward_is_refused_with_advice() -> None:
    q, (k, _), (v, _) = inputs()
    out, _ = attention(q, k, v, backend="triton")
    (dq,) = torch.autograd.grad(out.sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable once.*reference.attention"):
        dq.sum().backward()


def test_auto_keeps_out_of_the_interpreter() -> None:
    q, (k, _), (v, _) = inputs()
    assert torch.equal(attention(q, k, v)[0], attention(q, k, v, backend="cpu")[0])


def test_autocast_stays_outside() -> None:
    q, (k, _), (v, _) = inputs()
    with torch.autocast("cpu", torch.float16):
        out, lse = attention(q, k, v, backend="triton")
    assert out.dtype == torch.float32
    expected, expected_lse = attention(q, k, v, backend="triton")
    assert torch.equal(out, expected)
    assert torch.equal(lse, expected_lse)
