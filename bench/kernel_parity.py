"""Parity of a timed call: the operators' error budget on some heads of the very call that is timed.

Batch entries and heads are independent, so the first and the last head are compared whole with
fp64, and the call's other heads need no fp64 truth of their own. Of a block, the first image is
compared: its output and the gradient of its feature map.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hmc_fast.bench.cases import Case, Inputs
from hmc_fast.bench.peers_block import reference_block
from hmc_fast.kernels.testing import (
    BudgetUse,
    budget_use,
    textbook_attention,
    unavoidable_rounding,
)


@dataclass(frozen=True)
class _HeadTruth:
    """What one head of one batch entry should give, and what eager PyTorch gives."""

    batch: int
    head: int
    truth: list[Tensor]
    eager: list[Tensor]
    rounding: list[Tensor]


def budget_units(use: BudgetUse) -> float:
    """The error in units of what is allowed: at most 1 is within, infinity is not finite."""
    if not use.finite:
        return float("inf")
    parts = ((use.max_error, use.max_allowed), (use.mean_error, use.mean_allowed))
    return max(
        0.0 if error == 0 else error / allowed if allowed else float("inf")
        for error, allowed in parts
    )


class OperatorTruth:
    """Truth for one set of inputs of an operator case: outputs, dq, dks and dvs."""

    def __init__(self, case: Case, inputs: Inputs) -> None:
        self.names = _names(case)
        self.outputs = len(case.tokens)
        pairs = dict.fromkeys([(0, 0), (case.batch - 1, case.heads - 1)])
        self.heads = [_head_truth(case, inputs, *pair) for pair in pairs]

    def check(self, results: Sequence[Tensor]) -> BudgetUse:
        """The tensor nearest to its limit, or farthest beyond.

        ``results`` are the outputs, followed by the gradients where the pass has them.
        """
        uses = [
            budget_use(
                self.names[i],
                result[head.batch : head.batch + 1, :, head.head : head.head + 1],
                head.eager[i],
                head.truth[i],
                head.rounding[i],
            )
            for head in self.heads
            for i, result in enumerate(results)
        ]
        return max(uses, key=budget_units)


class BlockTruth:
    """Truth for the first image of a block case: its output and the gradient of its input."""

    def __init__(self, case: Case, inputs: Inputs) -> None:
        self.outputs = 1
        x, d_y = inputs.q[:1], inputs.d_outs[0][:1]
        self.truth = _run_block(case, x, d_y, torch.float64)
        self.eager = _run_block(case, x, d_y, x.dtype)

    def check(self, results: Sequence[Tensor]) -> BudgetUse:
        """As :meth:`OperatorTruth.check`; gradients of parameters are not compared."""
        uses = [
            budget_use(name, result[:1], eager, truth)
            for name, result, eager, truth in zip(
                ("y", "d x"), results, self.eager, self.truth, strict=False
            )
        ]
        return max(uses, key=budget_units)


def truth_of(case: Case, inputs: Inputs) -> OperatorTruth | BlockTruth:
    """The truth for ``case``; takes memory for some fp64 score matrices of one head while made."""
    return BlockTruth(case, inputs) if case.kind == "block" else OperatorTruth(case, inputs)


def _names(case: Case) -> list[str]:
    sources = range(len(case.tokens))
    names = [f"outs[{s}]" for s in sources] + ["d q"]
    return names + [f"d ks[{s}]" for s in sources] + [f"d vs[{s}]" for s in sources]


def _head_truth(case: Case, inputs: Inputs, batch: int, head: int) -> _HeadTruth:
    def own(x: Tensor) -> Tensor:
        return x[batch : batch + 1, :, head : head + 1].contiguous()

    scale = case.qk_head_dim**-0.5
    q, ks, vs = own(inputs.q), [own(k) for k in inputs.ks], [own(v) for v in inputs.vs]
    d_outs = [own(d) for d in inputs.d_outs]
    sources = len(ks)
    statistics = q.new_zeros(1, 1, case.queries, dtype=torch.float32)
    cotangents = [*d_outs, statistics, statistics.unsqueeze(-1).expand(-1, -1, -1, sources)]
    terms = unavoidable_rounding(q, ks, vs, scale, cotangents)
    return _HeadTruth(
        batch,
        head,
        truth=_textbook([x.double() for x in (q, *ks, *vs)], [d.double() for d in d_outs], scale),
        eager=_textbook([q, *ks, *vs], d_outs, scale),
        rounding=terms[:sources] + terms[sources + 2 :],
    )


def _textbook(tensors: Sequence[Tensor], d_outs: Sequence[Tensor], scale: float) -> list[Tensor]:
    leaves = [x.detach().requires_grad_() for x in tensors]
    sources = len(d_outs)
    outs, _, _ = textbook_attention(
        leaves[0], leaves[1 : 1 + sources], leaves[1 + sources :], scale
    )
    gradients = torch.autograd.grad(outs, leaves, list(d_outs))
    return [x.detach() for x in (*outs, *gradients)]


def _run_block(case: Case, x: Tensor, d_y: Tensor, dtype: torch.dtype) -> list[Tensor]:
    block = reference_block(case, x.dtype, dtype, x.device)
    leaf = x.detach().to(dtype).requires_grad_()
    y = block(leaf)
    (d_x,) = torch.autograd.grad(y, leaf, d_y.to(dtype))
    return [y.detach(), d_x]
