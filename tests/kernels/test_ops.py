"""The ops as PyTorch sees them: opcheck, compile, export, double backward, FLOPs."""

import shutil

import pytest
import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode

from hmc_fast.kernels import attention, multi_scale_attention, ops


def inputs(dtype: torch.dtype = torch.float32) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    torch.manual_seed(0)
    q = torch.randn(2, 13, 3, 16, dtype=dtype, requires_grad=True)
    ks = [torch.randn(2, n, 3, 16, dtype=dtype, requires_grad=True) for n in (7, 1, 31)]
    vs = [
        torch.randn(2, k.shape[1], 3, d, dtype=dtype, requires_grad=True)
        for k, d in zip(ks, (5, 64, 16), strict=True)
    ]
    return q, ks, vs


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_opcheck(dtype: torch.dtype) -> None:
    q, ks, vs = inputs(dtype)
    torch.library.opcheck(
        torch.ops.hmc_fast.attention_forward, (q, ks[0], vs[0], 0.25, "reference")
    )
    torch.library.opcheck(
        torch.ops.hmc_fast.multi_scale_attention_forward, (q, ks, vs, 0.25, "reference")
    )


def test_opcheck_of_the_backward_ops() -> None:
    q, ks, vs = inputs()
    q, ks, vs = q.detach(), [k.detach() for k in ks], [v.detach() for v in vs]
    outs, lse, weights = ops.multi_scale_attention_forward(q, ks, vs, 0.25, "reference")
    torch.library.opcheck(
        torch.ops.hmc_fast.multi_scale_attention_backward,
        (outs, lse, weights, q, ks, vs, outs, lse, weights, 0.25, "reference"),
    )
    out, lse = ops.attention_forward(q, ks[0], vs[0], 0.25, "reference")
    torch.library.opcheck(
        torch.ops.hmc_fast.attention_backward,
        (out, lse, q, ks[0], vs[0], out, lse, 0.25, "reference"),
    )


class Joint(nn.Module):
    def forward(self, q: Tensor, k1: Tensor, k2: Tensor, v1: Tensor, v2: Tensor) -> Tensor:
        outs, lse, weights = multi_scale_attention(q, [k1, k2], [v1, v2])
        single, _ = attention(q, k1, v1)
        return torch.cat(
            [*outs, single, lse.transpose(1, 2)[..., None], weights.transpose(1, 2)], -1
        )


def joint_inputs() -> tuple[Tensor, ...]:
    q, ks, vs = inputs()
    return q, ks[0], ks[2], vs[0], vs[2]


@pytest.mark.parametrize(
    "backend",
    [
        "aot_eager",
        pytest.param(
            "inductor", marks=pytest.mark.skipif(not shutil.which("g++"), reason="needs g++")
        ),
    ],
)
def test_compiles_in_one_graph_forward_and_backward(backend: str) -> None:
    arguments = joint_inputs()
    compiled = torch.compile(Joint(), fullgraph=True, backend=backend)
    expected, actual = Joint()(*arguments), compiled(*arguments)
    torch.testing.assert_close(actual, expected)
    cotangent = torch.randn_like(expected)
    for a, b in zip(
        torch.autograd.grad(actual, arguments, cotangent),
        torch.autograd.grad(expected, arguments, cotangent),
        strict=True,
    ):
        torch.testing.assert_close(a, b)


def test_exports_with_a_dynamic_batch_and_decomposes_to_plain_aten() -> None:
    arguments = tuple(t.detach() for t in joint_inputs())
    batch = torch.export.Dim("batch", min=1, max=64)
    program = torch.export.export(Joint(), arguments, dynamic_shapes=[{0: batch}] * 5)
    assert any("hmc_fast" in str(node.target) for node in program.graph.nodes)
    plain = program.run_decompositions(ops.decompositions())
    assert not any("hmc_fast" in str(node.target) for node in plain.graph.nodes)
    other = tuple(torch.cat([t, t, t]) for t in arguments)
    for exported in (program, plain):
        torch.testing.assert_close(exported.module()(*other), Joint()(*other))


def test_double_backward_is_refused_with_advice() -> None:
    q, (k, *_), (v, *_) = inputs()
    out, _ = attention(q, k, v)
    (dq,) = torch.autograd.grad(out.sum(), q, create_graph=True)
    with pytest.raises(RuntimeError, match="differentiable once.*reference.attention"):
        dq.sum().backward()


def test_only_what_requires_grad_gets_a_gradient() -> None:
    q, (k, *_), (v, *_) = inputs()
    out, lse = attention(q.detach(), k, v.detach())
    (out.sum() + lse.sum()).backward()
    assert k.grad is not None
    assert q.grad is None


def test_flops_are_counted() -> None:
    q, ks, vs = inputs()
    with FlopCounterMode(display=False) as counter:
        multi_scale_attention(q, ks, vs)
        attention(q, ks[0], vs[0])
    per_pair = 2 * 2 * 3 * 13
    expected = per_pair * (7 * (16 + 5) + 1 * (16 + 64) + 31 * (16 + 16) + 7 * (16 + 5))
    assert counter.get_total_flops() == expected
