"""Our cases in the layouts that other attention functions take: ``[B, H, N, D]``, one softmax.

Their functions know one source. The union softmax over several is then either *concatenated* (the
keys of all sources in one sequence, the values of source ``s`` in a sequence of the same length
that is zero outside of ``s``) or *merged* (each source on its own with its log-sum-exp ``lse_s``,
then ``outs[s]`` weighted by ``exp(lse_s - lse)``), which needs a function that returns ``lse``.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn.functional import pad

from hmc_fast.bench.cases import Case, Inputs
from hmc_fast.bench.peers.peer import BoundCall, grad_leaves
from hmc_fast.models import Attend

AttendOnce = Callable[[Tensor, Tensor, Tensor, float], Tensor]
"""``(q, k, v, scale)`` in ``[B, H, N, D]`` to ``out [B, H, M, Dv]``."""
AttendOnceWithLse = Callable[[Tensor, Tensor, Tensor, float], tuple[Tensor, Tensor]]
"""As :data:`AttendOnce`, with ``lse [B, H, M]`` (natural logarithm)."""


def heads_first(x: Tensor) -> Tensor:
    """``[B, N, H, D]`` as ``[B, H, N, D]`` (or back), a view."""
    return x.transpose(1, 2)


def widened(x: Tensor, width: int) -> Tensor:
    """Zeros after the last dimension up to ``width``: scores and outputs stay what they were."""
    return pad(x, (0, width - x.shape[-1])) if x.shape[-1] < width else x


def bind_concatenated(
    attend: AttendOnce, case: Case, inputs: Inputs, *, equal_head_dims: bool, one_call: bool
) -> BoundCall:
    """All sources in one sequence.

    Args:
        attend: the function.
        case: the case.
        inputs: its tensors.
        equal_head_dims: pad q, k and v to one width, for functions that want equal ones.
        one_call: put the values of all sources beside each other in one wide head; else there is a
            call per source, each over all keys.
    """
    problem = case.attention
    widths = [sum(problem.v_head_dims)] if one_call else list(problem.v_head_dims)
    call_widths = [max(problem.qk_head_dim, w) if equal_head_dims else w for w in widths]
    qk_width = max(call_widths) if equal_head_dims else problem.qk_head_dim
    values = [_in_place_of_all(inputs.vs, s) for s in range(len(inputs.vs))]
    if one_call:
        values = [torch.cat(values, dim=-1)]
    leaves = grad_leaves(
        [
            heads_first(widened(inputs.q, qk_width)),
            heads_first(widened(torch.cat(inputs.ks, dim=1), qk_width)),
            *(heads_first(widened(v, w)) for v, w in zip(values, call_widths, strict=True)),
        ]
    )
    d_outs = [torch.cat(inputs.d_outs, dim=-1)] if one_call else inputs.d_outs
    d_outs = [heads_first(widened(d, w)) for d, w in zip(d_outs, call_widths, strict=True)]
    scale = problem.scale

    def forward() -> list[Tensor]:
        q, k, *vs = leaves
        outs = []
        for v, width in zip(vs, call_widths, strict=True):
            narrow = width if equal_head_dims else qk_width
            outs.append(attend(q[..., :narrow], k[..., :narrow], v, scale))
        return outs

    def results(outs: Sequence[Tensor]) -> list[Tensor]:
        trimmed = [heads_first(o)[..., :w] for o, w in zip(outs, widths, strict=True)]
        return list(torch.split(trimmed[0], list(problem.v_head_dims), -1)) if one_call else trimmed

    def gradients(grads: Sequence[Tensor]) -> list[Tensor]:
        dq, dk, *dvs = [heads_first(g) for g in grads]
        dks = torch.split(dk[..., : problem.qk_head_dim], list(problem.tokens), dim=1)
        spread = results([heads_first(dv) for dv in dvs])
        tokens = list(problem.tokens)
        parts = [torch.split(dv, tokens, dim=1)[s] for s, dv in enumerate(spread)]
        return [dq[..., : problem.qk_head_dim], *dks, *parts]

    return BoundCall(forward, leaves, d_outs, results, gradients)


def bind_merged(
    attend: AttendOnceWithLse, case: Case, inputs: Inputs, *, equal_head_dims: bool
) -> BoundCall:
    """A call per source and a merge by log-sum-exp.

    Differentiable where ``attend`` is, through both of its outputs.
    """
    problem = case.attention
    scale = problem.scale
    widths = [max(problem.qk_head_dim, w) if equal_head_dims else w for w in problem.v_head_dims]
    qk_widths = widths if equal_head_dims else [problem.qk_head_dim] * len(widths)
    keys = [widened(k, w) for k, w in zip(inputs.ks, qk_widths, strict=True)]
    values = [widened(v, w) for v, w in zip(inputs.vs, widths, strict=True)]
    tensors = [widened(inputs.q, max(qk_widths)), *keys, *values]
    leaves = grad_leaves([heads_first(x) for x in tensors])
    sources = len(keys)
    d_outs = [heads_first(widened(d, w)) for d, w in zip(inputs.d_outs, widths, strict=True)]

    def forward() -> list[Tensor]:
        q, ks, vs = leaves[0], leaves[1 : 1 + sources], leaves[1 + sources :]
        pairs = [attend(q[..., :w], k, v, scale) for k, v, w in zip(ks, vs, qk_widths, strict=True)]
        lse = torch.stack([lse for _, lse in pairs]).logsumexp(dim=0)
        return [out * (part - lse).exp().unsqueeze(-1).to(out.dtype) for out, part in pairs]

    def results(outs: Sequence[Tensor]) -> list[Tensor]:
        return [heads_first(o)[..., :w] for o, w in zip(outs, problem.v_head_dims, strict=True)]

    def gradients(grads: Sequence[Tensor]) -> list[Tensor]:
        turned = [heads_first(g) for g in grads]
        dq, dks, dvs = turned[0], turned[1 : 1 + sources], turned[1 + sources :]
        trimmed = [g[..., : problem.qk_head_dim] for g in (dq, *dks)]
        return trimmed + [g[..., :w] for g, w in zip(dvs, problem.v_head_dims, strict=True)]

    return BoundCall(forward, leaves, d_outs, results, gradients)


def attend_sources(attend: AttendOnce, *, equal_head_dims: bool) -> Attend:
    """A function of one source for the blocks' seam; several sources are concatenated."""

    def attend_tokens(
        q: Tensor, ks: Sequence[Tensor], vs: Sequence[Tensor]
    ) -> tuple[list[Tensor], None]:
        k = ks[0] if len(ks) == 1 else torch.cat(list(ks), dim=1)
        outs = []
        for s, v in enumerate(vs):
            value = v if len(vs) == 1 else _in_place_of_all(vs, s)
            width = max(q.shape[-1], v.shape[-1]) if equal_head_dims else q.shape[-1]
            q_wide, k_wide = (heads_first(widened(x, width)) for x in (q, k))
            v_wide = widened(value, width) if equal_head_dims else value
            out = attend(q_wide, k_wide, heads_first(v_wide), q.shape[-1] ** -0.5)
            outs.append(heads_first(out)[..., : v.shape[-1]])
        return outs, None

    return attend_tokens


def _in_place_of_all(vs: Sequence[Tensor], s: int) -> Tensor:
    """The values of source ``s`` among zeros in place of the other sources' tokens."""
    before = sum(v.shape[1] for v in vs[:s])
    after = sum(v.shape[1] for v in vs[s + 1 :])
    return pad(vs[s], (0, 0, 0, 0, before, after))
