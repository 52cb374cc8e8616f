"""What results should be, in fp64, and the rounding that no implementation can avoid."""

from collections.abc import Iterable, Sequence
from functools import reduce

import torch
from torch import Tensor


def textbook_attention(
    q: Tensor, ks: Sequence[Tensor], vs: Sequence[Tensor], scale: float
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Softmax attention over the concatenated sources, in the dtype of its inputs.

    Returns what :func:`hmc_fast.kernels.multi_scale_attention` returns. Quadratic in memory.
    """
    lengths = [k.shape[1] for k in ks]
    scores = torch.matmul(q.transpose(1, 2), torch.cat(list(ks), 1).permute(0, 2, 3, 1)) * scale
    probabilities = torch.softmax(scores, dim=-1)
    parts = torch.split(probabilities, lengths, dim=-1)
    outs = [
        torch.matmul(part, v.transpose(1, 2)).transpose(1, 2)
        for part, v in zip(parts, vs, strict=True)
    ]
    lse_dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    lse = torch.logsumexp(scores.to(lse_dtype), dim=-1)
    weights = torch.stack([part.to(lse_dtype).sum(-1) for part in parts], dim=-1)
    return outs, lse, weights


def unavoidable_rounding(
    q: Tensor,
    ks: Sequence[Tensor],
    vs: Sequence[Tensor],
    scale: float,
    cotangents: Sequence[Tensor] | None,
) -> list[Tensor]:
    """The rounding term of each result, fp64: outs, lse, weights, then dq, dks and dvs.

    ``cotangents`` are those of outs, lse and weights, or None without a backward pass. Sums are
    taken over absolute values, except for δ and dP: the stored ``out`` rounds independently in each
    term, which adds in quadrature, and an inner product of n terms in fp32 errs by √n units of its
    norm (Higham and Mary 2019, a probabilistic approach to rounding error analysis).
    """
    unit, score_unit = torch.finfo(q.dtype).eps, torch.finfo(torch.float32).eps
    if q.dtype == torch.float64:
        score_unit = unit
    q, ks, vs = q.double(), [k.double() for k in ks], [v.double() for v in vs]
    outs, lse, weights = textbook_attention(q, ks, vs, scale)
    scores = [torch.einsum("bmhd,bnhd->bhmn", q, k) * scale for k in ks]
    p = [(score - lse.unsqueeze(-1)).exp() for score in scores]
    p_error = [score_unit * (1 + score.abs()) * x for score, x in zip(scores, p, strict=True)]
    terms = [torch.einsum("bhmn,bnhd->bmhd", e, v.abs()) for e, v in zip(p_error, vs, strict=True)]
    terms += [score_unit * lse.abs(), torch.stack([e.sum(-1) for e in p_error], -1)]
    if cotangents is None:
        return terms
    *d_outs, d_lse, d_weights = (c.double() for c in cotangents)
    products = [d_out * out for d_out, out in zip(d_outs, outs, strict=True)]
    delta = _sum(x.sum(-1) for x in products).transpose(1, 2) + (d_weights * weights).sum(-1)
    norm = _sum(x.square().sum(-1) for x in products).sqrt().transpose(1, 2)
    terms_of_delta = sum(v.shape[-1] for v in vs)
    delta_error = (unit + 2 * score_unit * terms_of_delta**0.5) * norm
    delta_error = delta_error + score_unit * (d_weights * weights).abs().sum(-1)
    d_scores_error = []
    for s, v in enumerate(vs):
        dp = torch.einsum("bmhd,bnhd->bhmn", d_outs[s], v) + d_weights[..., s, None]
        exact = (dp - (delta - d_lse).unsqueeze(-1)).abs()
        d_scores_error.append(abs(scale) * (p_error[s] * exact + p[s] * delta_error.unsqueeze(-1)))
    pairs = list(zip(d_scores_error, ks, strict=True))
    terms.append(_sum(torch.einsum("bhmn,bnhd->bmhd", e, k.abs()) for e, k in pairs))
    terms += [torch.einsum("bhmn,bmhd->bnhd", e, q.abs()) for e in d_scores_error]
    terms += [
        torch.einsum("bhmn,bmhd->bnhd", e, d_out.abs())
        for e, d_out in zip(p_error, d_outs, strict=True)
    ]
    return terms


def _sum(terms: Iterable[Tensor]) -> Tensor:
    return reduce(torch.add, terms)
