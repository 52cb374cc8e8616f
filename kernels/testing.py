"""Parity as an error budget: assert it with one call in your own test-suite.

The truth is softmax attention in fp64 over the concatenated sources, written independently of the
reference. A result passes if its error, maximum and mean, is at most twice that of eager PyTorch at
the same precision plus a rounding term, and everything is finite.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hmc_fast.kernels.api import multi_scale_attention

EAGER_ERROR_FACTOR = 2.0
ROUNDING_UNITS = 8.0
"""Rounding term in units of the dtype's epsilon times the largest (mean) true magnitude.

A backward pass that recomputes probabilities from the stored log-sum-exp carries the rounding of
that logarithm, a few units, even where eager PyTorch happens to be exact (a single key)."""


@dataclass(frozen=True)
class BudgetUse:
    """Errors against fp64 of one tensor, and what the budget allowed."""

    name: str
    max_error: float
    max_allowed: float
    mean_error: float
    mean_allowed: float
    finite: bool

    @property
    def within(self) -> bool:
        return (
            self.finite
            and self.max_error <= self.max_allowed
            and self.mean_error <= self.mean_allowed
        )

    def __str__(self) -> str:
        state = "finite" if self.finite else "NOT FINITE"
        return (
            f"{self.name}: max error {self.max_error:.3e} (allowed {self.max_allowed:.3e}), "
            f"mean error {self.mean_error:.3e} (allowed {self.mean_allowed:.3e}), {state}"
        )


def budget_use(name: str, actual: Tensor, eager: Tensor, truth: Tensor) -> BudgetUse:
    """Compare ``actual`` with ``truth`` (fp64), given what eager PyTorch reaches (``eager``)."""
    error = (actual.double() - truth).abs()
    eager_error = (eager.double() - truth).abs()
    unit = torch.finfo(actual.dtype).eps
    return BudgetUse(
        name=name,
        max_error=error.max().item(),
        max_allowed=EAGER_ERROR_FACTOR * eager_error.max().item()
        + ROUNDING_UNITS * unit * truth.abs().max().item(),
        mean_error=error.mean().item(),
        mean_allowed=EAGER_ERROR_FACTOR * eager_error.mean().item()
        + ROUNDING_UNITS * unit * truth.abs().mean().item(),
        finite=bool(actual.isfinite().all()),
    )


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
    names = ["q", *(f"ks[{s}]" for s in range(len(ks))), *(f"vs[{s}]" for s in range(len(vs)))]

    def run(dtype: torch.dtype, implementation: str | None) -> dict[str, Tensor]:
        leaves = [x.detach().to(dtype).requires_grad_(backward) for x in inputs]
        query, keys, values = leaves[0], leaves[1 : 1 + len(ks)], leaves[1 + len(ks) :]
        if implementation is None:
            outs, lse, weights = textbook_attention(query, keys, values, factor)
        else:
            outs, lse, weights = multi_scale_attention(
                query, keys, values, factor, backend=implementation
            )
        results = {f"outs[{s}]": out for s, out in enumerate(outs)}
        results |= {"lse": lse, "weights": weights}
        if backward:
            generator = torch.Generator().manual_seed(seed)
            cotangents = [
                torch.randn(r.shape, generator=generator, dtype=torch.float64)
                .to(q.dtype)
                .to(r.device, r.dtype)
                for r in results.values()
            ]
            gradients = torch.autograd.grad(list(results.values()), leaves, cotangents)
            results |= {f"d {name}": g for name, g in zip(names, gradients, strict=True)}
        return {name: tensor.detach() for name, tensor in results.items()}

    truth = run(torch.float64, None)
    eager = run(q.dtype, None)
    actual = run(q.dtype, backend)
    return [budget_use(name, actual[name], eager[name], truth[name]) for name in truth]


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
    uses = parity(q, ks, vs, scale=scale, backend=backend, backward=backward, seed=seed)
    outside = [str(use) for use in uses if not use.within]
    if outside:
        raise AssertionError("outside the error budget:\n  " + "\n  ".join(outside))
