"""Backends against fp64 and against eager PyTorch."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hmc_fast.kernels.api import gated_projection, multi_scale_attention
from hmc_fast.kernels.testing.budget import BudgetUse, budget_use
from hmc_fast.kernels.testing.truth import textbook_attention, unavoidable_rounding


def _draw_cotangents(q: Tensor, vs: Sequence[Tensor], seed: int) -> list[Tensor]:
    """Random cotangents of outs (in the dtype of ``q``), lse and weights (fp32 or fp64)."""
    batch, queries, heads, _ = q.shape
    generator = torch.Generator().manual_seed(seed)
    statistics_dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    shapes = [(batch, queries, heads, v.shape[3]) for v in vs]
    drawn = [torch.randn(shape, generator=generator).to(q.device, q.dtype) for shape in shapes]
    for shape in ((batch, heads, queries), (batch, heads, queries, len(vs))):
        statistic = torch.randn(shape, generator=generator)
        drawn.append(statistic.to(q.device, statistics_dtype))
    return drawn


def parity(
    q: Tensor,
    ks: Sequence[Tensor],
    vs: Sequence[Tensor],
    *,
    scale: float | None = None,
    backend: str = "auto",
    backward: bool = True,
    seed: int = 0,
) -> list[BudgetUse]:
    """Errors of ``backend`` on these inputs: outs, lse, weights and every gradient.

    Shapes as in :func:`hmc_fast.kernels.multi_scale_attention`; pass one source for plain
    attention. The gradients are those of a random linear functional of all outputs.
    """
    factor = q.shape[-1] ** -0.5 if scale is None else scale
    inputs = [q, *ks, *vs]
    sources = range(len(ks))
    names = [*(f"outs[{s}]" for s in sources), "lse", "weights"]
    cotangents = _draw_cotangents(q, vs, seed)
    if backward:
        names += ["d q", *(f"d ks[{s}]" for s in sources), *(f"d vs[{s}]" for s in sources)]

    def run(dtype: torch.dtype, implementation: str | None) -> dict[str, Tensor]:
        leaves = [x.detach().to(dtype).requires_grad_(backward) for x in inputs]
        query, keys, values = leaves[0], leaves[1 : 1 + len(ks)], leaves[1 + len(ks) :]
        if implementation is None:
            outs, lse, weights = textbook_attention(query, keys, values, factor)
        else:
            outs, lse, weights = multi_scale_attention(
                query, keys, values, factor, backend=implementation
            )
        results = [*outs, lse, weights]
        if backward:
            converted = [c.to(r.dtype) for c, r in zip(cotangents, results, strict=True)]
            results += torch.autograd.grad(results, leaves, converted)
        return {name: result.detach() for name, result in zip(names, results, strict=True)}

    truth = run(torch.float64, None)
    eager = run(q.dtype, None)
    actual = run(q.dtype, backend)
    rounding = unavoidable_rounding(q, ks, vs, factor, cotangents if backward else None)
    return [
        budget_use(name, actual[name], eager[name], truth[name], rounding[i])
        for i, name in enumerate(names)
    ]


def assert_parity(
    q: Tensor,
    ks: Sequence[Tensor],
    vs: Sequence[Tensor],
    *,
    scale: float | None = None,
    backend: str = "auto",
    backward: bool = True,
    seed: int = 0,
) -> None:
    """Raise ``AssertionError`` that lists every tensor outside the budget; see :func:`parity`."""
    _demand(parity(q, ks, vs, scale=scale, backend=backend, backward=backward, seed=seed))


def projection_parity(
    x: Tensor,
    attended: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor,
    gamma: Tensor,
    *,
    backend: str = "auto",
    seed: int = 0,
) -> list[BudgetUse]:
    """Errors of the gated projection of ``backend``: the output and every gradient.

    Shapes as in :func:`hmc_fast.kernels.gated_projection`.
    """
    inputs = [x, *attended, weight, bias, gamma]
    names = ["y", "d x", *(f"d attended[{s}]" for s in range(len(attended)))]
    names += ["d weight", "d bias", "d gamma"]
    generator = torch.Generator().manual_seed(seed)
    cotangent = torch.randn(x.shape, generator=generator).to(x.device, x.dtype)

    def run(implementation: str, exact: bool) -> dict[str, Tensor]:
        leaves = [
            t.detach().to(torch.float64 if exact else t.dtype).requires_grad_() for t in inputs
        ]
        features, *others, matrix, offset, gate = leaves
        y = gated_projection(features, others, matrix, offset, gate, backend=implementation)
        gradients = torch.autograd.grad(y, leaves, cotangent.to(y.dtype))
        results = [y, *gradients]
        return {name: result.detach() for name, result in zip(names, results, strict=True)}

    truth, eager = run("reference", exact=True), run("reference", exact=False)
    actual = run(backend, exact=False)
    return [budget_use(name, actual[name], eager[name], truth[name]) for name in names]


def assert_projection_parity(
    x: Tensor,
    attended: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor,
    gamma: Tensor,
    *,
    backend: str = "auto",
    seed: int = 0,
) -> None:
    """Raise ``AssertionError`` as :func:`assert_parity`; see :func:`projection_parity`."""
    _demand(projection_parity(x, attended, weight, bias, gamma, backend=backend, seed=seed))


def _demand(uses: Sequence[BudgetUse]) -> None:
    outside = [str(use) for use in uses if not use.within]
    if outside:
        raise AssertionError("outside the error budget:\n  " + "\n  ".join(outside))
