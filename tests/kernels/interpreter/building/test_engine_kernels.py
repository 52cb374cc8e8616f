"""Kernels as an engine launches them: contiguous, no statistics, the scale compiled in."""

import pytest
import torch

from hmc_fast.kernels.building.engine_kernels import plan_engine_attention
from hmc_fast.kernels.fused.launch import Target
from hmc_fast.kernels.fused.tiles import INTERPRETER, load_tiles
from hmc_fast.kernels.problem import AttentionProblem
from hmc_fast.kernels.testing import budget_use, textbook_attention


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(
    ("queries", "heads", "d_qk", "sources"),
    [(1, 1, 16, ((1, 16),)), (49, 3, 64, ((53, 300),)), (37, 2, 24, ((67, 40), (131, 64)))],
    ids=str,
)
def test_engine_kernels_are_within_the_budget(
    queries: int, heads: int, d_qk: int, sources: tuple[tuple[int, int], ...], dtype: torch.dtype
) -> None:
    torch.manual_seed(queries)
    tokens, v_head_dims = zip(*sources, strict=True)
    problem = AttentionProblem(2, queries, heads, tokens, v_head_dims, d_qk, dtype)
    q, ks, vs = problem.tensors()
    outs = [q.new_empty(2, queries, heads, d_v) for d_v in v_head_dims]
    target = Target(load_tiles(INTERPRETER), 8, "ieee")
    plan_engine_attention(target, q, ks, vs, d_qk**-0.5, outs).run()
    eager, _, _ = textbook_attention(q, ks, vs, d_qk**-0.5)
    ks64, vs64 = ([t.double() for t in ts] for ts in (ks, vs))
    truth, _, _ = textbook_attention(q.double(), ks64, vs64, d_qk**-0.5)
    for s, out in enumerate(outs):
        use = budget_use(f"outs[{s}]", out, eager[s], truth[s])
        assert use.within, use


def test_three_sources_have_no_engine_kernel() -> None:
    q = torch.empty(1, 3, 1, 16)
    target = Target(load_tiles(INTERPRETER), 8, "ieee")
    with pytest.raises(ValueError, match="3 sources: engine kernels exist for 1 or 2"):
        plan_engine_attention(target, q, [q] * 3, [q] * 3, 0.25, [q] * 3)
