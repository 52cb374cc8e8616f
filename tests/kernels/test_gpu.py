"""The fused kernels on a GPU: parity at every precision, long sequences, determinism, graphs."""

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from hmc_fast import create_model
from hmc_fast.kernels import attention, multi_scale_attention
from hmc_fast.kernels.geometry import model_problems
from hmc_fast.kernels.problem import AttentionProblem
from hmc_fast.kernels.testing import (
    DrawnProblem,
    assert_parity,
    assert_projection_parity,
    budget_use,
    draw_problems,
    textbook_attention,
    unavoidable_rounding,
)

pytestmark = pytest.mark.gpu

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
REPEATS = 250
GRID_LIMIT = 65_535
"""Blocks that CUDA allows in the second and third side of a grid."""


@pytest.fixture(autouse=True)
def _poison_uninitialised_memory() -> Iterator[None]:
    """Fill what ``torch.empty`` returns with NaN, so that a gap in an output cannot hide."""
    torch.use_deterministic_algorithms(True, warn_only=True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert torch.empty(3, device="cuda").isnan().all()
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("problem", draw_problems(seed=7, count=36), ids=str)
def test_drawn_problems(problem: DrawnProblem, dtype: torch.dtype) -> None:
    q, ks, vs = problem.tensors(dtype, "cuda")
    assert_parity(q, ks, vs, scale=problem.shape.scale, backend="triton")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    "problem",
    [problem for problem in model_problems(batch=2) if problem.queries <= 4096],
    ids=lambda problem: problem.name,
)
def test_the_models_own_problems(problem: AttentionProblem, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    problem = replace(problem, dtype=dtype, device=torch.device("cuda"))
    assert_parity(*problem.tensors(), backend="triton")


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("tokens", [16_384, 65_536])
def test_long_sequences(tokens: int, dtype: torch.dtype) -> None:
    """Held to fp64 through 64 queries, which alone have a cotangent: all other rows of the scores
    then leave no trace in any gradient, and the truth needs 64 rows of them.
    """
    torch.manual_seed(tokens)
    inner = 1 + torch.randperm(tokens - 2, device="cuda")[:62]
    chosen = torch.cat([inner.new_tensor([0, tokens - 1]), inner])
    q, k = (torch.randn(1, tokens, 1, 64, device="cuda", dtype=dtype) for _ in range(2))
    v = torch.randn(1, tokens, 1, 256, device="cuda", dtype=dtype)
    d_out = torch.randn(1, 64, 1, 256, device="cuda", dtype=dtype)
    d_lse = torch.randn(1, 1, 64, device="cuda")

    leaves = [t.clone().requires_grad_() for t in (q, k, v)]
    out, lse = attention(*leaves, backend="triton")
    dq, dk, dv = torch.autograd.grad([out[:, chosen], lse[:, :, chosen]], leaves, [d_out, d_lse])
    assert out.isfinite().all()
    assert lse.isfinite().all()
    others = torch.ones(tokens, dtype=torch.bool, device="cuda")
    others[chosen] = False
    assert torch.count_nonzero(dq[:, others]) == 0
    actual = [out[:, chosen], lse[:, :, chosen], dq[:, chosen], dk, dv]

    def textbook(precision: torch.dtype) -> list[Tensor]:
        few = [t.to(precision).requires_grad_() for t in (q[:, chosen], k, v)]
        (some,), statistic, _ = textbook_attention(few[0], [few[1]], [few[2]], 0.125)
        cotangents = [d_out.to(some.dtype), d_lse.to(statistic.dtype)]
        return [some, statistic, *torch.autograd.grad([some, statistic], few, cotangents)]

    truth, eager = textbook(torch.float64), textbook(dtype)
    no_weights = torch.zeros(1, 1, 64, 1, device="cuda")
    rounding = unavoidable_rounding(q[:, chosen], [k], [v], 0.125, [d_out, d_lse, no_weights])
    del rounding[2]  # of the weights, which a single source has not
    for i, name in enumerate(("out", "lse", "dq", "dk", "dv")):
        use = budget_use(name, actual[i], eager[i], truth[i], rounding[i])
        assert use.within, use


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_many_repeats_give_identical_bits(dtype: torch.dtype) -> None:
    shape = AttentionProblem(2, 331, 4, (1031, 257), (128, 256), 64, torch.float32)
    problem = DrawnProblem(3, "normal", shape)
    q, ks, vs = problem.tensors(dtype, "cuda")

    def run() -> list[Tensor]:
        leaves = [t.clone().requires_grad_() for t in (q, *ks, *vs)]
        outs, lse, weights = multi_scale_attention(
            leaves[0], leaves[1:3], leaves[3:], backend="triton"
        )
        total = sum((out.float().square().sum() for out in outs), lse.sum())
        return [*outs, *torch.autograd.grad(total + weights.square().sum(), leaves)]

    first = run()
    for _ in range(REPEATS):
        for a, b in zip(first, run(), strict=True):
            assert torch.equal(a, b)


def step_and_gradients(x: Tensor, v: Tensor) -> tuple[Tensor, ...]:
    out, lse = attention(x, x, v, backend="triton")
    return (out, lse, *torch.autograd.grad([out, lse], [x, v], [out.detach(), lse.detach()]))


def test_cuda_graphs_replay_on_new_inputs() -> None:
    def draw(width: int) -> Tensor:
        return torch.randn(2, 300, 3, width, device="cuda", dtype=torch.bfloat16)

    x, v = draw(64).requires_grad_(), draw(256).requires_grad_()
    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(3):
            step_and_gradients(x, v)
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step_and_gradients(x, v)
    with torch.no_grad():
        x.copy_(draw(64))
        v.copy_(draw(256))
    graph.replay()
    for replayed, eager in zip(captured, step_and_gradients(x, v), strict=True):
        assert torch.equal(replayed, eager)


def test_the_model_compiles_whole_and_trains(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)
    torch.manual_seed(0)
    model = create_model("hmc_net_resnet18", backend="triton").cuda()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("gamma"):
                parameter.fill_(0.5)
    x = torch.randn(2, 3, 128, 96, device="cuda")
    compiled = torch.compile(model, fullgraph=True)
    with torch.autocast("cuda", torch.bfloat16):
        loss = compiled(x).float().square().sum()
    loss.backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None, name
        assert parameter.grad.isfinite().all(), name
    model.eval()
    with torch.inference_mode():
        torch.testing.assert_close(compiled(x), model(x), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize(
    ("batch", "heads"), [(GRID_LIMIT + 10, 1), (3, GRID_LIMIT + 10)], ids=["batches", "heads"]
)
def test_more_heads_than_a_grid_side_holds(batch: int, heads: int) -> None:
    def draw(tokens: int) -> Tensor:
        return torch.randn(batch, tokens, heads, 16, device="cuda", dtype=torch.float16)

    assert_parity(draw(5), [draw(7)], [draw(7)], backend="triton")


def test_more_elements_than_31_bits_address() -> None:
    """4.6 GB of values; the last image must be what it is alone."""
    batch, tokens, heads, d_v = 17, 65_536, 8, 256
    assert batch * tokens * heads * d_v > 2**31

    def draw(n: int, width: int) -> Tensor:
        return torch.randn(batch, n, heads, width, device="cuda", dtype=torch.bfloat16)

    q, k, v = draw(16, 64), draw(tokens, 64), draw(tokens, d_v)
    out, lse = attention(q, k, v, backend="triton")
    last = [t[-1:].contiguous() for t in (q, k, v)]
    (expected,), expected_lse, _ = textbook_attention(
        last[0].float(), [last[1].float()], [last[2].float()], 0.125
    )
    torch.testing.assert_close(out[-1:].float(), expected, rtol=2e-2, atol=2e-3)
    torch.testing.assert_close(lse[-1:], expected_lse, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(
    ("rows", "channels", "widths"),
    [((2, 49), 96, (96,)), ((3, 67), 130, (33, 65)), ((8, 784), 512, (512,))],
    ids=str,
)
def test_gated_projection(
    rows: tuple[int, ...], channels: int, widths: tuple[int, ...], dtype: torch.dtype
) -> None:
    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, device="cuda")

    weight = (draw(channels, sum(widths)) / sum(widths) ** 0.5).to(dtype)
    attended = [draw(*rows, w).to(dtype) for w in widths]
    assert_projection_parity(
        draw(*rows, channels).to(dtype),
        attended,
        weight,
        draw(channels),
        draw(channels),
        backend="triton",
    )


def test_a_channels_last_map_makes_no_copy() -> None:
    """Beside its outputs the operator takes no memory on the GPU."""
    feature_map = torch.randn(2, 512, 64, 64, device="cuda", dtype=torch.bfloat16)
    feature_map = feature_map.to(memory_format=torch.channels_last)
    tokens = feature_map.permute(0, 2, 3, 1).flatten(1, 2).unflatten(2, (2, 256))
    qk = torch.randn(2, 4096, 4, 64, device="cuda", dtype=torch.bfloat16)

    def call() -> tuple[Tensor, Tensor]:
        return attention(qk[:, :, :2], qk[:, :, 2:], tokens, backend="triton")

    call()
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    out, lse = call()
    taken = torch.cuda.max_memory_allocated() - before
    results = sum(t.numel() * t.element_size() for t in (out, lse))
    assert taken <= results + 2 * lse.numel() * lse.element_size() + 4096
