"""The reference implementation: eager PyTorch on any device, in fp64 where the inputs are.

Everything else is held against this file. One softmax runs over the union of all sources; the
single-source operator is the case of one source. Scores are formed for a chunk of queries at a
time, so memory grows with the number of keys and not with its square, and half-precision inputs are
computed in fp32.

Shapes: ``q [B, M, H, Dqk]``, ``k_s [B, N_s, H, Dqk]``, ``v_s [B, N_s, H, Dv_s]``.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.functional import linear

SCORE_ELEMENTS_PER_CHUNK = 2**24
"""Scores held at once: 2**24 fp32 values are 64 MiB."""


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """The dtype in which scores, softmax and sums are computed: fp64 for fp64, else fp32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def attention(
    q: Tensor, k: Tensor, v: Tensor, scale: float, query_chunk: int | None = None
) -> tuple[Tensor, Tensor]:
    """``softmax(scale · q kᵀ) v`` per head, with its log-sum-exp.

    Returns ``out [B, M, H, Dv]`` in the dtype of ``q`` and ``lse [B, H, M]`` (natural logarithm).
    Plain differentiable PyTorch: it can be traced, decomposed and compiled.
    """
    outs, lse, _ = multi_scale_attention(q, [k], [v], scale, query_chunk)
    return outs[0], lse


def multi_scale_attention(
    q: Tensor,
    ks: Sequence[Tensor],
    vs: Sequence[Tensor],
    scale: float,
    query_chunk: int | None = None,
) -> tuple[list[Tensor], Tensor, Tensor]:
    """One softmax over the tokens of all sources; the sources are never concatenated.

    Each source is attended to on its own with its log-sum-exp ``lse_s``; the union softmax is then
    source ``s`` weighted by ``softmax_s(lse_s)``.

    Returns ``outs[s] = P_s V_s [B, M, H, Dv_s]`` (contiguous), ``lse [B, H, M]`` over the
    union and the share of each source ``weights [B, H, M, S]``, which sums to one over ``S``.
    """
    dtype = compute_dtype(q.dtype)
    keys = [k.to(dtype) for k in ks]
    values = [v.to(dtype) for v in vs]
    chunks = [
        _attend(q[:, start:stop].to(dtype) * scale, keys, values)
        for start, stop in _query_chunks(q, ks, query_chunk)
    ]
    if len(chunks) == 1:
        outs, lse, weights = chunks[0]
    else:
        outs = [torch.cat([chunk[0][s] for chunk in chunks], dim=1) for s in range(len(ks))]
        lse = torch.cat([chunk[1] for chunk in chunks], dim=2)
        weights = torch.cat([chunk[2] for chunk in chunks], dim=2)
    return [out.to(q.dtype).contiguous() for out in outs], lse, weights


def attention_weights(q: Tensor, k: Tensor, scale: float) -> Tensor:
    """The probabilities themselves, ``[B, H, M, N]``: for inspection, quadratic in memory."""
    dtype = compute_dtype(q.dtype)
    return _scores(q.to(dtype) * scale, k.to(dtype)).softmax(dim=-1)


def attention_backward(
    d_out: Tensor,
    d_lse: Tensor,
    q: Tensor,
    k: Tensor,
    v: Tensor,
    out: Tensor,
    lse: Tensor,
    scale: float,
) -> tuple[Tensor, Tensor, Tensor]:
    """Gradients ``(dq, dk, dv)`` of :func:`attention` from its outputs; nothing N×N is stored."""
    weights = lse.new_ones(*lse.shape, 1)
    dq, dks, dvs = multi_scale_attention_backward(
        [d_out], d_lse, torch.zeros_like(weights), q, [k], [v], [out], lse, weights, scale
    )
    return dq, dks[0], dvs[0]


def multi_scale_attention_backward(
    d_outs: Sequence[Tensor],
    d_lse: Tensor,
    d_weights: Tensor,
    q: Tensor,
    ks: Sequence[Tensor],
    vs: Sequence[Tensor],
    outs: Sequence[Tensor],
    lse: Tensor,
    weights: Tensor,
    scale: float,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """Gradients ``(dq, [dk_s], [dv_s])`` through outs, lse and weights.

    With ``P_s = exp(S_s - lse)``, ``dP_s = dout_s v_sᵀ + dw_s`` and ``δ = Σ_s Σ_n P_s dP_s``, every
    score receives ``dS_s = P_s · (dP_s - δ + dlse)``. Whole rows are at hand here, so δ is summed
    from them and not from ``outs`` and ``weights``: the differences then cancel as in autograd.
    """
    dtype = compute_dtype(q.dtype)
    keys = [k.to(dtype) for k in ks]
    values = [v.to(dtype) for v in vs]
    dq_chunks = []
    dks = [torch.zeros_like(k, memory_format=torch.contiguous_format) for k in keys]
    dvs = [torch.zeros_like(v, memory_format=torch.contiguous_format) for v in values]
    for start, stop in _query_chunks(q, ks, None):
        q_chunk = q[:, start:stop].to(dtype) * scale
        rows = slice(start, stop)
        probabilities = [(_scores(q_chunk, key) - lse[:, :, rows, None]).exp() for key in keys]
        d_probabilities = []
        for s, value in enumerate(values):
            d_out = d_outs[s][:, rows].to(dtype)
            dvs[s] += torch.einsum("bhmn,bmhd->bnhd", probabilities[s], d_out)
            d_probability = torch.einsum("bmhd,bnhd->bhmn", d_out, value)
            d_probabilities.append(d_probability + d_weights[:, :, rows, s, None])
        pairs = list(zip(probabilities, d_probabilities, strict=True))
        delta = torch.stack([(p * dp).sum(dim=-1) for p, dp in pairs]).sum(dim=0)
        row_term = (d_lse[:, :, rows] - delta).unsqueeze(-1)
        d_scores = [p * (dp + row_term) for p, dp in pairs]
        dq_chunk = torch.zeros_like(q_chunk, memory_format=torch.contiguous_format)
        for s, key in enumerate(keys):
            dq_chunk += torch.einsum("bhmn,bnhd->bmhd", d_scores[s], key)
            dks[s] += torch.einsum("bhmn,bmhd->bnhd", d_scores[s], q_chunk)
        dq_chunks.append(dq_chunk * scale)
    dq = torch.cat(dq_chunks, dim=1)
    return dq.to(q.dtype), [dk.to(q.dtype) for dk in dks], [dv.to(q.dtype) for dv in dvs]


def gated_projection(
    x: Tensor, attended: Sequence[Tensor], weight: Tensor, bias: Tensor, gamma: Tensor
) -> Tensor:
    """``x + γ ⊙ (concat(attended) weightᵀ + bias)`` in the dtype of ``x``.

    ``x [..., C]``, ``attended[s] [..., K_s]``, ``weight [C, Σ K_s]`` in the dtype of ``attended``,
    ``bias [C]`` and ``gamma [C]``. Plain differentiable PyTorch.
    """
    joined = attended[0] if len(attended) == 1 else torch.cat(list(attended), dim=-1)
    update = linear(joined, weight, bias.to(weight.dtype))
    return torch.addcmul(x, gamma.to(x.dtype), update.to(x.dtype))


def gated_projection_backward(
    d_y: Tensor, attended: Sequence[Tensor], weight: Tensor, bias: Tensor, gamma: Tensor
) -> tuple[list[Tensor], Tensor, Tensor, Tensor]:
    """Gradients ``([d_attended_s], d_weight, d_bias, d_gamma)`` of :func:`gated_projection`.

    The projected update is not needed: with ``G = d_yᵀ concat(attended)`` and ``g = Σ_rows d_y``,
    ``d_weight = γ G``, ``d_bias = γ g`` and ``d_gamma = Σ_k weight ∘ G + bias g``. So nothing
    beyond the inputs is kept, and the work is two library matrix products.
    """
    dtype = compute_dtype(weight.dtype)
    gates, full_weight = gamma.to(dtype), weight.to(dtype)
    rows = d_y.reshape(-1, d_y.shape[-1]).to(weight.dtype)
    widths = [a.shape[-1] for a in attended]
    gated_weights = torch.split((gates[:, None] * full_weight).to(weight.dtype), widths, dim=1)
    d_attended = [
        (rows @ gated_weight).view(a.shape)
        for gated_weight, a in zip(gated_weights, attended, strict=True)
    ]
    products = torch.cat([_product(rows.T, a.reshape(-1, a.shape[-1])) for a in attended], dim=1)
    column_sums = rows.sum(dim=0, dtype=dtype)
    d_gamma = (full_weight * products).sum(dim=1) + bias.to(dtype) * column_sums
    return (
        d_attended,
        (gates[:, None] * products).to(weight.dtype),
        (gates * column_sums).to(bias.dtype),
        d_gamma.to(gamma.dtype),
    )


def _product(a: Tensor, b: Tensor) -> Tensor:
    """``a @ b`` in :func:`compute_dtype`: half precision would overflow before ``γ`` is applied."""
    dtype = compute_dtype(a.dtype)
    if a.is_cuda and a.dtype != dtype:
        return torch.mm(a, b, out_dtype=dtype)
    return a.to(dtype) @ b.to(dtype)


def _attend(
    scaled_q: Tensor, keys: Sequence[Tensor], values: Sequence[Tensor]
) -> tuple[list[Tensor], Tensor, Tensor]:
    scores = [_scores(scaled_q, key) for key in keys]
    source_lse = torch.stack([score.logsumexp(dim=-1) for score in scores], dim=-1)
    lse = source_lse.logsumexp(dim=-1)
    outs = [
        torch.einsum("bhmn,bnhd->bmhd", (score - lse.unsqueeze(-1)).exp(), value)
        for score, value in zip(scores, values, strict=True)
    ]
    return outs, lse, source_lse.softmax(dim=-1)


def _scores(scaled_q: Tensor, key: Tensor) -> Tensor:
    return torch.einsum("bmhd,bnhd->bhmn", scaled_q, key)


def _query_chunks(
    q: Tensor, ks: Sequence[Tensor], query_chunk: int | None
) -> Iterator[tuple[int, int]]:
    batch, queries, heads, _ = q.shape
    if query_chunk is None:
        scores_per_query = batch * heads * sum(k.shape[1] for k in ks)
        query_chunk = max(1, SCORE_ELEMENTS_PER_CHUNK // scores_per_query)
    for start in range(0, queries, query_chunk):
        yield start, min(start + query_chunk, queries)
