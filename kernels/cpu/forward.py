"""Blocked forward pass: the scores of a block are formed, exponentiated in place and used at once.

Exponentials are taken against a reference logit ``r`` of each query, on which softmax does not
depend. It starts at zero and moves only where exponentials would leave a safe range; then the block
is formed again, against its maximum, and what was summed before is rescaled. So a block usually
needs neither its maximum nor a subtraction nor a rescale. ``-r`` is one more column of the scaled
queries, against a column of ones beside the keys: the matrix product subtracts it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hmc_fast.kernels.cpu.blocks import FORWARD, spans

SUM_LIMIT = 2.0**32
"""Exponentials of a block add up to at most this, and those of the first to at least its inverse:
far from overflow in fp32, also when they multiply values."""


@dataclass
class _Rows:
    """What is known so far of ``R`` queries of ``G`` heads."""

    queries: Tensor
    """``[G, R, Dqk + 1]``: scaled queries and, last, ``-r``."""
    sums: list[Tensor]
    """Of each source, ``Σ exp(score - r)``, ``[G, R, 1]``."""
    products: list[Tensor]
    """Of each source, ``Σ exp(score - r) v``, ``[G, R, Dv_s]``."""


def attend(
    q: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    scale: float,
    outs: Sequence[Tensor],
    lse: Tensor,
    weights: Tensor,
) -> None:
    """Attention of ``q [G, M, Dqk]`` over all sources, written to ``outs``, ``lse``, ``weights``.

    ``keys[s] [G, N_s, Dqk + 1]`` are those of :func:`with_ones`, ``values[s] [G, N_s, Dv_s]`` fp32;
    ``outs[s] [G, M, Dv_s]``, ``lse [G, M]`` and ``weights [G, M, S]`` may be strided.
    """
    for span in spans(q.shape[1], FORWARD.queries):
        rows = _attend_rows(q[:, span], keys, values, scale)
        total = torch.stack(rows.sums).sum(dim=0)  # [G, R, 1]
        for product, out in zip(rows.products, outs, strict=True):
            torch.div(product, total, out=out[:, span])
        torch.sub(total.log(), rows.queries[:, :, -1:], out=lse[:, span, None])
        torch.div(torch.cat(rows.sums, dim=2), total, out=weights[:, span])


def with_ones(x: Tensor) -> Tensor:
    """``x [G, N, D]`` in fp32 with a column of ones, ``[G, N, D + 1]``."""
    joined = x.new_empty(*x.shape[:2], x.shape[2] + 1, dtype=torch.float32)
    joined[:, :, :-1] = x
    joined[:, :, -1] = 1
    return joined


def _attend_rows(
    q: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor], scale: float
) -> _Rows:
    queries = with_ones(q)
    queries[:, :, :-1] *= scale
    queries[:, :, -1] = 0
    rows = _Rows(queries, [], [])
    for key, value in zip(keys, values, strict=True):
        for span in spans(key.shape[1], FORWARD.keys):
            exponentials, sums = _exponentials(rows, key[:, span])
            if span.start == 0:
                rows.sums.append(sums)
                rows.products.append(torch.bmm(exponentials, value[:, span]))
            else:
                rows.sums[-1] += sums
                rows.products[-1].baddbmm_(exponentials, value[:, span])
    return rows


def _exponentials(rows: _Rows, keys: Tensor) -> tuple[Tensor, Tensor]:
    """``exp(score - r)`` of a block, ``[G, R, C]``, and its sums; ``r`` moves if it has to."""
    exponentials = torch.bmm(rows.queries, keys.transpose(1, 2)).exp_()
    sums = exponentials.sum(dim=2, keepdim=True)
    too_small = not rows.sums and sums.min().item() < 1 / SUM_LIMIT
    if too_small or sums.max().item() > SUM_LIMIT:
        torch.bmm(rows.queries, keys.transpose(1, 2), out=exponentials)
        exponentials -= _move_reference(rows, exponentials.amax(dim=2, keepdim=True))
        torch.sum(exponentials.exp_(), dim=2, keepdim=True, out=sums)
    return exponentials, sums


def _move_reference(rows: _Rows, maximum: Tensor) -> Tensor:
    """Raise ``r`` by ``maximum [G, R, 1]`` of ``score - r`` where that is positive, or anywhere at
    the first block; returns by how much.

    ``r`` has few digits, so that the product subtracts it exactly also where PyTorch was allowed
    to multiply in bf16 (``torch.set_float32_matmul_precision``).
    """
    negative_reference = rows.queries[:, :, -1:]
    growth = maximum.clamp_min(0) if rows.sums else maximum
    moved = (negative_reference - growth).bfloat16()
    growth = negative_reference - moved
    negative_reference.copy_(moved)
    factor = growth.neg().exp_()
    for partial in (*rows.sums, *rows.products):
        partial *= factor
    return growth
