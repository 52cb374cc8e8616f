"""Blocks cover everything once and stay within their limits."""

import math

import pytest
import torch

from hmc_fast.kernels.cpu.blocks import (
    FLOOR,
    SCORES_AT_ONCE,
    BlockShape,
    ProductSum,
    exponentials,
    head_groups,
    query_factor,
    reach,
    row_products,
    spans,
)


@pytest.mark.parametrize("most", [1, 7, 16, 17, 256])
@pytest.mark.parametrize("length", [1, 15, 16, 17, 255, 257, 784])
def test_spans_cover_a_length_once(length: int, most: int) -> None:
    covered = [i for span in spans(length, most) for i in range(span.start, span.stop)]
    assert covered == list(range(length))
    assert max(span.stop - span.start for span in spans(length, most)) <= most


def test_spans_leave_no_short_rest() -> None:
    assert [span.stop - span.start for span in spans(784, 256)] == [208, 208, 208, 160]


@pytest.mark.parametrize(("queries", "heads"), [(1, 8), (784, 2), (16384, 3), (49, 32)])
def test_groups_cover_every_head_once(queries: int, heads: int) -> None:
    shape = BlockShape(queries=1024, keys=256)
    groups = list(head_groups(torch.empty(2, queries, heads, 4), queries, shape))
    covered = [(g.film, h) for g in groups for h in range(g.heads.start, g.heads.stop)]
    assert covered == [(film, head) for film in range(2) for head in range(heads)]
    together = shape.heads(queries, queries)
    assert together == 1 or together * min(queries, 1024) * min(queries, 256) <= SCORES_AT_ONCE


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_a_product_sum_in_a_strided_target(dtype: torch.dtype) -> None:
    target = torch.full((5, 2, 8), torch.nan, dtype=dtype).transpose(0, 1)
    pairs = [(torch.randn(2, 5, n), torch.randn(2, n, 8)) for n in (3, 1, 16)]
    total = ProductSum(target)
    for a, b in pairs:
        total.add(a, b)
    total.store(0.5)
    expected = sum(0.5 * a @ b for a, b in pairs)
    torch.testing.assert_close(target, expected.to(dtype), rtol=1e-2, atol=1e-2)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
def test_row_products(dtype: torch.dtype) -> None:
    a, b = (torch.randn(700, 3, 512, dtype=dtype).transpose(0, 1) for _ in range(2))
    torch.testing.assert_close(row_products(a, b), (a.float() * b.float()).sum(2))


@pytest.mark.parametrize("scale", [0.125, 0.1, 3.0, -0.7, 0.0, 1e-30])
def test_queries_that_stay_exact_leave_little_for_the_product(scale: float) -> None:
    factor = query_factor(scale, exact=True)
    assert math.frexp(factor)[0] == 0.5
    assert scale == 0.0 or 1.0 <= abs(scale / factor) < 2.0
    assert factor * (scale / factor) == scale
    assert query_factor(scale, exact=False) == (scale or 1.0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_no_score_goes_beyond_the_reach(dtype: torch.dtype) -> None:
    q, *keys = (torch.randn(2, n, 16).to(dtype) * n for n in (7, 5, 9))
    largest = max(float((q.float() @ k.float().mT).abs().max()) for k in keys) * 0.3
    assert largest <= reach(q, keys, -0.3) <= 6 * largest
    assert math.isnan(reach(q * torch.nan, keys, 0.3))


def test_exponents_are_raised_only_where_the_row_has_larger_ones() -> None:
    low = FLOOR - 30
    rows = torch.tensor([[[0.0, -1.0, low], [low, low - 1, low - 2], [0.0, torch.nan, low]]])
    near, far, spoilt = exponentials(rows.clone(), rows.amax(dim=2, keepdim=True))[0]
    torch.testing.assert_close(near, torch.tensor([0.0, -1.0, FLOOR]).exp2())
    torch.testing.assert_close(far, rows[0, 1].exp2(), rtol=1e-5, atol=0.0)
    assert spoilt[1].isnan()
    raised = exponentials(rows.clone())[0, 1]
    torch.testing.assert_close(raised, torch.full((3,), FLOOR).exp2())
