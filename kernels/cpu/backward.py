"""Blocked backward pass: probabilities recomputed from ``lse``, every gradient summed in one order.

With ``P_s = exp(S_s - lse)``, ``dP_s = dout_s v_sᵀ`` and ``δ = Σ_s (dout_s·out_s + dw_s·w_s)``,
every score receives ``dS_s = P_s · (dP_s + dw_s + dlse - δ)``. Blocks of keys are walked outside,
so ``dk`` and ``dv`` of a block stay in cache (Dao 2023, FlashAttention-2).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from math import log2

from torch import Tensor

from hmc_fast.kernels.cpu.blocks import (
    BACKWARD,
    FLOOR,
    LOG2_E,
    ProductSum,
    dense,
    exponentials,
    full_precision,
    product,
    query_factor,
    reach,
    rounded,
    row_products,
    spans,
    takes_onednn,
)
from hmc_fast.kernels.cpu.precision import has_tiles


@dataclass(frozen=True)
class QuerySide:
    """What the backward pass needs of ``M`` queries of ``G`` heads, in fp32."""

    queries: Tensor
    """Times ``factor``, ``[G, M, Dqk]``."""
    factor: float
    reach: float
    """No score is larger, in units of ln 2."""
    lse: Tensor
    """In units of ln 2, ``[G, M, 1]``."""
    d_outs: list[Tensor]
    """``[G, M, Dv_s]``."""
    row_terms: Tensor
    """``dw_s + dlse - δ``, ``[G, M, S]``."""
    rounds: bool
    """Whether sums multiply in bf16."""
    factor_queries: Tensor
    """``queries`` as the sum of ``dk`` multiplies them; where that rounds, as they came."""
    factor_d_outs: list[Tensor]
    """``d_outs`` as the sums of ``dv`` multiply them."""

    @classmethod
    def of(
        cls,
        q: Tensor,
        keys: Sequence[Tensor],
        outs: Sequence[Tensor],
        lse: Tensor,
        weights: Tensor,
        d_outs: Sequence[Tensor],
        d_lse: Tensor,
        d_weights: Tensor,
        scale: float,
        *,
        rounds: bool,
    ) -> "QuerySide":
        """From the tensors of the forward pass, ``lse [G, M]`` and ``weights [G, M, S]`` in fp32.

        ``rounds`` is for bf16 only, see :func:`hmc_fast.kernels.cpu.precision.rounds_products`.
        """
        delta = (weights * d_weights).sum(dim=2)
        for out, d_out in zip(outs, d_outs, strict=True):
            delta += row_products(d_out, out)
        full = [dense(d_out) for d_out in d_outs]
        row_terms = d_weights + (d_lse - delta).unsqueeze(2)
        largest = reach(q, keys, scale * LOG2_E)
        exact = largest > -FLOOR or (rounds and has_tiles())
        factor = query_factor(scale * LOG2_E, exact=exact)
        queries, lse = dense(q) * factor, lse.unsqueeze(2) * LOG2_E
        factors = (q, list(d_outs)) if rounds else (queries, full)
        return cls(queries, factor, largest, lse, full, row_terms, rounds, *factors)


def differentiate(
    side: QuerySide,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    scale: float,
    dq: Tensor,
    dks: Sequence[Tensor],
    dvs: Sequence[Tensor],
) -> None:
    """Write ``dq [G, M, Dqk]`` and of every source ``dk [G, N_s, Dqk]`` and ``dv [G, N_s, Dv_s]``.

    ``keys``, ``values`` and the gradients may be of any dtype.
    """
    rest = scale * LOG2_E / side.factor
    keys_in_all = sum(key.shape[1] for key in keys)
    lowest = -2 * side.reach - log2(keys_in_all)  # of scores less their lse
    onednn = takes_onednn(dq.shape[1], max(key.shape[1] for key in keys))
    full_keys = [dense(key) for key in keys] if onednn else keys
    full_values = [dense(value) for value in values] if onednn else values
    turns = onednn and not side.rounds
    row_spans = spans(dq.shape[1], BACKWARD.queries)
    dq_sums = [ProductSum(dq[:, rows]) for rows in row_spans]
    factor_queries = _row_blocks(side.factor_queries, row_spans, turns=turns)
    for s, key in enumerate(keys):
        factor_d_outs = _row_blocks(side.factor_d_outs[s], row_spans, turns=turns)
        for columns in spans(key.shape[1], BACKWARD.keys):
            k = full_precision("keys", full_keys[s][:, columns])
            v = full_precision("values", full_values[s][:, columns])
            factor_k = key[:, columns] if side.rounds else k
            dk_sum, dv_sum = ProductSum(dks[s][:, columns]), ProductSum(dvs[s][:, columns])
            for i, rows in enumerate(row_spans):
                q, d_out = side.queries[:, rows], side.d_outs[s][:, rows]
                probabilities = product("probabilities", q, k.transpose(1, 2), rest)
                probabilities.sub_(side.lse[:, rows])
                if lowest < FLOOR:
                    alone = len(keys) == 1
                    maximum = None if alone else probabilities.amax(dim=2, keepdim=True)
                    exponentials(probabilities, maximum)
                else:
                    probabilities.exp2_()
                factor = _factor(probabilities, side)
                dv_sum.add(factor.mT, factor_d_outs[i])
                d_scores = product("scores", d_out, v.transpose(1, 2))
                d_scores.add_(side.row_terms[:, rows, s, None]).mul_(probabilities)
                factor = _factor(d_scores, side)
                dk_sum.add(factor.mT, factor_queries[i])
                dq_sums[i].add(factor, factor_k)
            dk_sum.store(scale if side.rounds else scale / side.factor)
            dv_sum.store()
    for dq_sum in dq_sums:
        dq_sum.store(scale)


def _row_blocks(x: Tensor, row_spans: Sequence[slice], *, turns: bool) -> list[Tensor]:
    """Rows of ``x [G, M, D]``; in memory by columns where one ``turns``.

    So oneDNN wants the right factor of a product whose left one is transposed.
    """
    blocks = [x[:, rows] for rows in row_spans]
    return [block.mT.contiguous().mT for block in blocks] if turns else blocks


def _factor(x: Tensor, side: QuerySide) -> Tensor:
    """``x`` as sums multiply it."""
    return rounded("factor", x) if side.rounds else x
