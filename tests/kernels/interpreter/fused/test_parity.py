"""The fused kernels within the error budget of fp64, forward and every gradient."""

import pytest
import torch
from torch import Tensor

from hmc_fast.kernels import attention, multi_scale_attention
from hmc_fast.kernels.fused.forward import split_keys
from hmc_fast.kernels.problem import AttentionProblem
from hmc_fast.kernels.testing import (
    DrawnProblem,
    assert_parity,
    assert_projection_parity,
    budget_use,
    draw_problems,
    textbook_attention,
)

PROBLEMS = draw_problems(seed=7, count=66)
DTYPES = (torch.float32, torch.float16)


@pytest.mark.parametrize(
    ("problem", "dtype"),
    [(problem, DTYPES[i % 2]) for i, problem in enumerate(PROBLEMS)],
    ids=str,
)
def test_drawn_problems(problem: DrawnProblem, dtype: torch.dtype) -> None:
    q, ks, vs = problem.tensors(dtype)
    assert_parity(q, ks, vs, scale=problem.shape.scale, backend="triton")


def test_the_draw_covers_what_it_promises() -> None:
    assert {p.kind for p in PROBLEMS} >= {"strided", "large logits", "constant keys", "one key"}
    shapes = [p.shape for p in PROBLEMS]
    assert {p.sources for p in shapes} == {1, 2, 3}
    assert min(p.queries for p in shapes) == 1
    assert max(p.queries for p in shapes) == 300
    assert {16, 256} <= {p.qk_head_dim for p in shapes}
    assert {16, 1024} <= {d for p in shapes for d in p.v_head_dims}
    assert {1, 8} <= {p.heads for p in shapes}
    splitting = [p for p in PROBLEMS if p.kind == "few queries" and p.shape.tokens[0] > 100]
    assert splitting


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("scale", [0.0, -0.3])
def test_any_scale(dtype: torch.dtype, scale: float) -> None:
    q, ks, vs = draw_problems(seed=11, count=1)[0].tensors(dtype)
    assert_parity(q, ks, vs, scale=scale, backend="triton")


def test_the_widest_head() -> None:
    q, k, v = torch.randn(1, 3, 1, 16), torch.randn(1, 40, 1, 16), torch.randn(1, 40, 1, 2048)
    assert_parity(q.half(), [k.half()], [v.half()], backend="triton")


def test_eight_sources() -> None:
    q = torch.randn(1, 5, 1, 16)
    ks = [torch.randn(1, n, 1, 16) for n in range(1, 9)]
    vs = [torch.randn(1, n, 1, 16 + n) for n in range(1, 9)]
    assert_parity(q, ks, vs, backend="triton")


def test_offsets_beyond_two_to_the_31st() -> None:
    """Two batches 2³¹ elements apart: the storage is virtual, and only what is used is touched."""
    torch.use_deterministic_algorithms(False)
    far = 2**31 + 64
    shape = (2, 20, 1, 16)
    storage = torch.empty(far + 20 * 16, dtype=torch.float16)
    x = storage.as_strided(shape, (far, 16, 16, 1))
    x.copy_(torch.randn(shape))
    out, lse = attention(x, x, x, backend="triton")
    near = x.contiguous()
    expected, expected_lse = attention(near, near, near, backend="triton")
    assert torch.equal(out, expected)
    assert torch.equal(lse, expected_lse)


def everything(
    q: Tensor, ks: list[Tensor], vs: list[Tensor], cotangent: Tensor
) -> tuple[Tensor, Tensor, list[Tensor]]:
    """Sum of outs, lse, and the gradients of ``q``, ``ks`` and ``vs``."""
    leaves = [t.detach().requires_grad_() for t in (q, *ks, *vs)]
    n = len(ks)
    outs, lse, _ = multi_scale_attention(
        leaves[0], leaves[1 : n + 1], leaves[n + 1 :], backend="triton"
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


def test_permuting_the_keys_changes_nothing(plain: tuple[Tensor, ...]) -> None:
    q, k, v, cotangent = plain
    order = torch.randperm(150, generator=torch.Generator().manual_seed(0))
    out, lse, (dq, dk, dv) = everything(q, [k[:, order]], [v[:, order]], cotangent)
    back = torch.argsort(order)
    assert_within_budget([out, lse, dq, dk[:, back], dv[:, back]], plain)


@pytest.mark.parametrize("sizes", [[1, 149], [75, 75], [13, 64, 73]], ids=str)
def test_splitting_a_source_changes_nothing(plain: tuple[Tensor, ...], sizes: list[int]) -> None:
    q, k, v, cotangent = plain
    ks, vs = list(k.split(sizes, 1)), list(v.split(sizes, 1))
    out, lse, (dq, *parts) = everything(q, ks, vs, cotangent)
    n = len(sizes)
    joined = [torch.cat(parts[:n], 1), torch.cat(parts[n:], 1)]
    assert_within_budget([out, lse, dq, *joined], plain)


def test_results_do_not_depend_on_the_batch_they_travel_in(plain: tuple[Tensor, ...]) -> None:
    """Within the budget of the batch alone, as the grid decides how keys are split."""
    q, k, v, cotangent = plain
    doubled = everything(
        torch.cat([q, q]),
        [torch.cat([k, k])],
        [torch.cat([v, v])],
        torch.cat([cotangent, cotangent]),
    )
    flat = [doubled[0], doubled[1], *doubled[2]]
    for half in (slice(0, 2), slice(2, 4)):
        assert_within_budget([t[half] for t in flat], plain)
    for tensor in flat:
        assert torch.equal(tensor[:2], tensor[2:])


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_two_backward_runs_give_identical_bits(dtype: torch.dtype) -> None:
    shape = AttentionProblem(2, 70, 2, (130, 17), (48, 64), 32, torch.float32)
    problem = DrawnProblem(3, "normal", shape)
    q, ks, vs = problem.tensors(dtype)

    def run() -> list[Tensor]:
        leaves = [t.clone().requires_grad_() for t in (q, *ks, *vs)]
        outs, lse, weights = multi_scale_attention(
            leaves[0], leaves[1:3], leaves[3:], backend="triton"
        )
        total = sum((out.float().square().sum() for out in outs), lse.sum())
        return [*outs, *torch.autograd.grad(total + weights.square().sum(), leaves)]

    for first, second in zip(run(), run(), strict=True):
        assert torch.equal(first, second)


def test_few_queries_against_many_keys_are_split_over_the_keys() -> None:
    splits, spans = split_keys([16384, 4096, 1], 64, programs=4, multiprocessors=132)
    assert splits > 16
    for span, length in zip(spans, (16384, 4096, 1), strict=True):
        assert span % 64 == 0
        assert span * splits >= length
        assert span * (splits - 1) < max(length, 16384)
    assert split_keys([16384], 64, programs=132, multiprocessors=132)[0] == 1
    assert split_keys([1], 64, programs=1, multiprocessors=132)[0] == 1


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("rows", "channels", "widths"),
    [((1, 1), 16, (16,)), ((2, 49), 96, (96,)), ((3, 67), 130, (33, 65)), ((70,), 64, (64, 1, 20))],
    ids=str,
)
def test_gated_projection(
    rows: tuple[int, ...], channels: int, widths: tuple[int, ...], dtype: torch.dtype
) -> None:
    generator = torch.Generator().manual_seed(channels)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    x, attended = draw(*rows, channels).to(dtype), [draw(*rows, w).to(dtype) for w in widths]
    weight = (draw(channels, sum(widths)) / sum(widths) ** 0.5).to(dtype)
    bias, gamma = draw(channels), draw(channels)
    assert_projection_parity(x, attended, weight, bias, gamma, backend="triton")
    assert_projection_parity(x, attended, weight, bias, torch.zeros(channels), backend="triton")
