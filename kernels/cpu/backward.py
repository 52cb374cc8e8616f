"""Blocked backward pass: probabilities recomputed from ``lse``, every gradient summed in one order.

With ``P_s = exp(S_s - lse)``, ``dP_s = dout_s v_sᵀ`` and ``δ = Σ_s (dout_s·out_s + dw_s·w_s)``,
every score receives ``dS_s = P_s · (dP_s + dw_s + dlse - δ)``. Blocks of keys are walked outside,
so ``dk`` and ``dv`` of a block stay in cache (Dao 2023, FlashAttention-2).
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hmc_fast.kernels.cpu.blocks import BACKWARD, spans


@dataclass(frozen=True)
class QuerySide:
    """What the backward pass needs of ``M`` queries of ``G`` heads, in fp32."""

    queries: Tensor
    """Scaled, ``[G, M, Dqk]``."""
    lse: Tensor
    """``[G, M, 1]``."""
    d_outs: list[Tensor]
    """``[G, M, Dv_s]``."""
    row_terms: Tensor
    """``dw_s + dlse - δ``, ``[G, M, S]``."""


def query_side(
    q: Tensor,
    outs: Sequence[Tensor],
    lse: Tensor,
    weights: Tensor,
    d_outs: Sequence[Tensor],
    d_lse: Tensor,
    d_weights: Tensor,
    scale: float,
) -> QuerySide:
    """From ``q [G, M, Dqk]``, ``outs [G, M, Dv_s]``, ``lse [G, M]``, ``weights [G, M, S]``."""
    full = [d_out.float() for d_out in d_outs]
    delta = (weights * d_weights).sum(dim=2)
    for out, d_out in zip(outs, full, strict=True):
        delta += (d_out * out).sum(dim=2)
    row_terms = d_weights + (d_lse - delta).unsqueeze(2)
    return QuerySide(q.float() * scale, lse.unsqueeze(2), full, row_terms)


def key_gradients(
    side: QuerySide, s: int, keys: Tensor, values: Tensor, dq: Tensor, dk: Tensor, dv: Tensor
) -> None:
    """Write ``dk``, ``dv`` of source ``s`` and add its share to ``dq [G, M, Dqk]``, fp32, unscaled.

    ``keys [G, N, Dqk]`` and ``values [G, N, Dv]`` fp32; ``dk`` and ``dv`` of their shapes may be
    strided and of another dtype.
    """
    for span in spans(keys.shape[1], BACKWARD.keys):
        key, value = keys[:, span], values[:, span]
        dk_block, dv_block = torch.zeros_like(key), torch.zeros_like(value)
        for rows in spans(dq.shape[1], BACKWARD.queries):
            queries, d_out = side.queries[:, rows], side.d_outs[s][:, rows]
            probabilities = torch.bmm(queries, key.transpose(1, 2))
            probabilities.sub_(side.lse[:, rows]).exp_()
            dv_block.baddbmm_(probabilities.transpose(1, 2), d_out)
            d_scores = torch.bmm(d_out, value.transpose(1, 2))
            d_scores.add_(side.row_terms[:, rows, s, None]).mul_(probabilities)
            dk_block.baddbmm_(d_scores.transpose(1, 2), queries)
            dq[:, rows].baddbmm_(d_scores, key)
        dk[:, span] = dk_block
        dv[:, span] = dv_block
