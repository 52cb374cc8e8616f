"""Blocked attention on a CPU within the error budget of fp64, forward and every gradient."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from hmc_fast.kernels import AttentionProblem, attention, multi_scale_attention
from hmc_fast.kernels.cpu import blocks
from hmc_fast.kernels.testing import (
    DrawnProblem,
    assert_parity,
    budget_use,
    draw_problems,
    textbook_attention,
)

pytestmark = pytest.mark.usefixtures("_products")

PROBLEMS = draw_problems(seed=7, count=66)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)
SHAPE = AttentionProblem(2, 70, 2, (130, 17), (48, 64), 32, torch.float32)


@pytest.fixture(autouse=True)
def _poison_uninitialised_memory() -> Iterator[None]:
    """Fill what ``torch.empty`` returns with NaN, so that a gap in an output cannot hide."""
    torch.use_deterministic_algorithms(True)
    assert torch.empty(3).isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_drawn_problems(problem: DrawnProblem, dtype: torch.dtype) -> None:
    q, ks, vs = problem.tensors(dtype)
    assert_parity(q, ks, vs, scale=problem.shape.scale, backend="cpu")


@pytest.mark.usefixtures("_tiny_blocks")
@pytest.mark.parametrize(
    ("problem", "dtype"),
    [(problem, DTYPES[i % 3]) for i, problem in enumerate(draw_problems(seed=8, count=40))],
    ids=str,
)
def test_many_blocks(problem: DrawnProblem, dtype: torch.dtype) -> None:
    q, ks, vs = problem.tensors(dtype)
    assert_parity(q, ks, vs, scale=problem.shape.scale, backend="cpu")


@pytest.mark.usefixtures("_tiny_blocks")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("order", ["rising", "falling", "mixed"])
def test_logits_from_minus_to_plus_80_in_any_order(order: str, dtype: torch.dtype) -> None:
    """Rising logits move the reference at every block; falling ones underflow beside it."""
    generator = torch.Generator().manual_seed(1)
    logits = torch.linspace(-80, 80, 150)
    if order == "falling":
        logits = logits.flip(0)
    if order == "mixed":
        logits = logits[torch.randperm(150, generator=generator)]
    direction = torch.ones(16) / 4
    q = direction.expand(1, 40, 2, 16).contiguous()
    k = (logits[:, None, None] * direction).expand(150, 2, 16)[None].contiguous()
    v = torch.randn(1, 150, 2, 24, generator=generator)
    q, ks, vs = q.to(dtype), list(k.to(dtype).split([70, 80], 1)), list(v.to(dtype).split(70, 1))
    vs = [vs[0], torch.cat(vs[1:], 1)]
    assert_parity(q, ks, vs, scale=1.0, backend="cpu")


@pytest.mark.parametrize("offset", [-1000.0, 1000.0])
def test_logits_far_from_zero(offset: float) -> None:
    """A constant in every logit leaves softmax alone; alone it would overflow or vanish."""
    generator = torch.Generator().manual_seed(2)
    q, k = (torch.randn(1, n, 2, 16, generator=generator) for n in (20, 300))
    q[..., 0], k[..., 0] = 1.0, offset
    v = torch.randn(1, 300, 2, 24, generator=generator)
    assert_parity(q, [k], [v], scale=1.0, backend="cpu")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [0.0, -0.3])
def test_any_scale(dtype: torch.dtype, scale: float) -> None:
    q, ks, vs = draw_problems(seed=11, count=1)[0].tensors(dtype)
    assert_parity(q, ks, vs, scale=scale, backend="cpu")


def test_any_width_and_number_of_sources() -> None:
    q = torch.randn(1, 5, 1, 3)
    ks = [torch.randn(1, n, 1, 3) for n in range(1, 11)]
    vs = [torch.randn(1, n, 1, n) for n in range(1, 10)] + [torch.randn(1, 10, 1, 4096)]
    assert_parity(q, ks, vs, backend="cpu")


def test_what_is_not_a_number_stays_so() -> None:
    q, k, v = (torch.randn(1, n, 1, 16) for n in (4, 600, 600))
    q[0, 2] = torch.nan
    (out,), lse, weights = multi_scale_attention(q, [k], [v], backend="cpu")
    for result in (out[0, :, 0], lse[0, 0, :, None], weights[0, 0]):
        assert result[2].isnan().all()
        assert result[[0, 1, 3]].isfinite().all()


def subnormal(x: Tensor) -> int:
    """How many elements are smaller than the normal numbers."""
    return int(((x != 0) & (x.abs() < torch.finfo(torch.float32).tiny)).sum())


@pytest.mark.parametrize("spread", [3.0, 30.0, 300.0])
def test_logits_far_apart_multiply_few_numbers_that_are_slow(
    spread: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Softmaxes of such logits are full of numbers that cost up to thirty times as much."""
    slow: list[int] = []

    def watch(module: Any, name: str, factors: slice) -> None:
        multiply = getattr(module, name)

        def watched(*tensors: Tensor, **options: Any) -> Tensor:
            slow.append(sum(map(subnormal, tensors[factors])))
            return multiply(*tensors, **options)

        monkeypatch.setattr(module, name, watched)

    generator = torch.Generator().manual_seed(2)
    q, k, v = (torch.randn(1, n, 2, 64, generator=generator) for n in (300, 1100, 1100))
    leaves = [(spread * q).requires_grad_(), k.requires_grad_(), v.requires_grad_()]
    scores = 0.125 * torch.einsum("bmhd,bnhd->bhmn", leaves[0], k).detach()
    plain = subnormal((scores - scores.amax(3, keepdim=True)).exp())
    watch(torch, "baddbmm", slice(1, 3))
    watch(torch, "bmm", slice(2))
    watch(blocks, "onednn_linear", slice(2))
    out, lse = attention(*leaves, scale=0.125, backend="cpu")
    (out.square().sum() + lse.sum()).backward()
    monkeypatch.undo()
    assert plain > 100 or spread < 30
    assert len(slow) > 4, "the products were not seen"
    assert sum(slow) <= max(plain / 5, scores.numel() / 1000)
    assert_parity(spread * q, [k.detach()], [v.detach()], scale=0.125, backend="cpu")


def everything(
    q: Tensor, ks: list[Tensor], vs: list[Tensor], cotangent: Tensor
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Sum of outs, lse, and the gradients of ``q``, ``ks`` and ``vs``."""
    leaves = [t.detach().requires_grad_() for t in (q, *ks, *vs)]
    n = len(ks)
    outs, lse, _ = multi_scale_attention(
        leaves[0], leaves[1 : n + 1], leaves[n + 1 :], backend="cpu"
    )
    out = torch.stack(outs).sum(0)
    gradients = torch.autograd.grad([out, lse], leaves, [cotangent, torch.ones_like(lse)])
    return out.detach(), lse.detach(), list(gradients)


@pytest.fixture(scope="module")
def plain() -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(5)
    shapes = ((2, 33, 2, 48), (2, 150, 2, 48), (2, 150, 2, 80), (2, 33, 2, 80))
    q, k, v, cotangent = (torch.randn(shape, generator=generator) for shape in shapes)
    return q, k, v, cotangent


def assert_within_budget(actual: list[Tensor], inputs: tuple[Tensor, ...]) -> None:
    """Out, lse, dq, dk and dv lie as near fp64 as the budget for plain ``inputs`` allows."""
    q, k, v, cotangent = inputs

    def textbook(dtype: torch.dtype) -> list[Tensor]:
        leaves = [t.to(dtype).requires_grad_() for t in (q, k, v)]
        (out,), lse, _ = textbook_attention(leaves[0], [leaves[1]], [leaves[2]], 48**-0.5)
        ones = torch.ones_like(lse)
        gradients = torch.autograd.grad([out, lse], leaves, [cotangent.to(dtype), ones])
        return [t.detach() for t in (out, lse, *gradients)]

    truth, eager = textbook(torch.float64), textbook(torch.float32)
    for name, a, e, t in zip(("out", "lse", "dq", "dk", "dv"), actual, eager, truth, strict=True):
        use = budget_use(name, a, e, t)
        assert use.within, use


@pytest.mark.usefixtures("_tiny_blocks")
def test_permuting_the_keys_changes_nothing(plain: tuple[Tensor, ...]) -> None:
    q, k, v, cotangent = plain
    order = torch.randperm(150, generator=torch.Generator().manual_seed(0))
    out, lse, (dq, dk, dv) = everything(q, [k[:, order]], [v[:, order]], cotangent)
    back = torch.argsort(order)
    assert_within_budget([out, lse, dq, dk[:, back], dv[:, back]], plain)


@pytest.mark.usefixtures("_tiny_blocks")
@pytest.mark.parametrize("sizes", [[1, 149], [75, 75], [13, 64, 73]], ids=str)
def test_splitting_a_source_changes_nothing(plain: tuple[Tensor, ...], sizes: list[int]) -> None:
    q, k, v, cotangent = plain
    ks, vs = list(k.split(sizes, 1)), list(v.split(sizes, 1))
    out, lse, (dq, *parts) = everything(q, ks, vs, cotangent)
    n = len(sizes)
    joined = [torch.cat(parts[:n], 1), torch.cat(parts[n:], 1)]
    assert_within_budget([out, lse, dq, *joined], plain)


@pytest.mark.usefixtures("_tiny_blocks")
def test_results_do_not_depend_on_the_batch_they_travel_in(plain: tuple[Tensor, ...]) -> None:
    q, k, v, cotangent = plain
    alone = everything(q, [k], [v], cotangent)
    doubled = everything(
        torch.cat([q, q]),
        [torch.cat([k, k])],
        [torch.cat([v, v])],
        torch.cat([cotangent, cotangent]),
    )
    for joint, single in zip((*doubled[:2], *doubled[2]), (*alone[:2], *alone[2]), strict=True):
        assert torch.equal(joint[:2], single)
        assert torch.equal(joint[2:], single)


@pytest.mark.usefixtures("_tiny_blocks")
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_two_runs_give_identical_bits(dtype: torch.dtype) -> None:
    problem = DrawnProblem(3, "normal", SHAPE)
    q, ks, vs = problem.tensors(dtype)

    def run() -> list[Tensor]:
        leaves = [t.clone().requires_grad_() for t in (q, *ks, *vs)]
        outs, lse, weights = multi_scale_attention(
            leaves[0], leaves[1:3], leaves[3:], backend="cpu"
        )
        total = sum((out.float().square().sum() for out in outs), lse.sum())
        return [*outs, lse, *torch.autograd.grad(total + weights.square().sum(), leaves)]

    for first, second in zip(run(), run(), strict=True):
        assert torch.equal(first, second)
