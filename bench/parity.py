"""Parity of a timed call with fp64, by the error budget of the operators.

Operators: batch entries and heads are independent, so the first and the last head of the very call
that is timed are compared whole. Blocks: the first image's output and the gradient of its feature
map. Models: logits of calls of the timed shape. Training steps: the gradient of all parameters.
"""

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from hmc_fast.bench.cases import Case, Inputs
from hmc_fast.bench.peers.peer import split_leaves
from hmc_fast.kernels.testing import (
    EAGER_ERROR_FACTOR,
    ROUNDING_UNITS,
    BudgetUse,
    budget_use,
    textbook_attention,
    unavoidable_rounding,
)
from hmc_fast.models import FilmModel, HierarchicalSelfAttention, attention_blocks

PARAMETER_SEED = 0
GATE_STD = 0.5
GATES = ("gamma", "net_weight")
OPEN_GATE = 0.5
PARITY_FILMS = 8
PARITY_PIXELS = 8 * 256**2
"""Logits are compared on as many films as hold this many pixels, at least 2 and at most 8."""
LEARNING_RATE = 1e-6


def budget_units(use: BudgetUse) -> float:
    """The error in units of what is allowed: at most 1 is within, infinity is not finite."""
    if not use.finite:
        return float("inf")
    parts = ((use.max_error, use.max_allowed), (use.mean_error, use.mean_allowed))
    return max(
        0.0 if error == 0 else error / allowed if allowed else float("inf")
        for error, allowed in parts
    )


@dataclass(frozen=True)
class _HeadTruth:
    """What one head of one batch entry should give, and what eager PyTorch gives."""

    batch: int
    head: int
    truth: list[Tensor]
    eager: list[Tensor]
    rounding: list[Tensor]


class OperatorTruth:
    """Truth for one set of inputs of an operator case: outputs, dq, dks and dvs."""

    def __init__(self, case: Case, inputs: Inputs) -> None:
        problem = case.attention
        sources = range(problem.sources)
        self.names = [f"outs[{s}]" for s in sources] + ["d q"]
        self.names += [f"d ks[{s}]" for s in sources] + [f"d vs[{s}]" for s in sources]
        pairs = dict.fromkeys([(0, 0), (problem.batch - 1, problem.heads - 1)])
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


def _head_truth(case: Case, inputs: Inputs, batch: int, head: int) -> _HeadTruth:
    def part(x: Tensor) -> Tensor:
        return x[batch : batch + 1, :, head : head + 1].contiguous()

    scale = case.attention.scale
    q, ks, vs = part(inputs.q), [part(k) for k in inputs.ks], [part(v) for v in inputs.vs]
    d_outs = [part(d) for d in inputs.d_outs]
    sources = len(ks)
    statistics = q.new_zeros(1, 1, q.shape[1], dtype=torch.float32)
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
    outs, _, _ = textbook_attention(*split_leaves(leaves), scale)
    gradients = torch.autograd.grad(outs, leaves, list(d_outs))
    return [x.detach() for x in (*outs, *gradients)]


def drawn_block(channels: int) -> HierarchicalSelfAttention:
    """A block with the same parameters in every call, its gate open."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(PARAMETER_SEED)
        block = HierarchicalSelfAttention(channels, "reference")
    randomise_gates(block)
    return block


def randomise_gates(module: nn.Module) -> None:
    """Draw biases and gates, which start at zero and would hide the attention."""
    generator = torch.Generator().manual_seed(PARAMETER_SEED)
    for block in attention_blocks(module):
        for parameter in (block.gamma, block.out_proj.bias):
            drawn = torch.randn(parameter.shape, generator=generator) * GATE_STD
            with torch.no_grad():
                parameter.copy_(drawn)


def _run_block(case: Case, x: Tensor, d_y: Tensor, dtype: torch.dtype) -> list[Tensor]:
    """By textbook attention, its parameters rounded to the dtype of ``x``, then promoted."""
    block = drawn_block(case.channels).to(x.device, x.dtype).to(dtype)
    block.attend = lambda q, ks, vs: (textbook_attention(q, ks, vs, q.shape[-1] ** -0.5)[0], None)
    leaf = x.detach().to(dtype).requires_grad_()
    y = block(leaf)
    (d_x,) = torch.autograd.grad(y, leaf, d_y.to(dtype))
    return [y.detach(), d_x]


def parity_films(size: int) -> int:
    """How many films of ``size``² logits are compared on."""
    return max(2, min(PARITY_FILMS, PARITY_PIXELS // size**2))


def open_gates(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters with every γ, and a lesion head's weight of the network, that is zero opened.

    Behind a closed gate attention cannot change a logit, so that its parity would say nothing.
    """
    return {
        name: torch.full_like(value, OPEN_GATE)
        if name.rpartition(".")[2] in GATES and not value.any()
        else value
        for name, value in state.items()
    }


class LogitTruth:
    """Logits of some films in fp64, and what eager PyTorch makes of them.

    Eager PyTorch, the yardstick, is called as a peer is: a batch takes other convolution algorithms
    than a single image, which round differently. Only the fp64 truth takes one image at a time, for
    memory.
    """

    def __init__(self, exact: nn.Module, eager: Callable[[Tensor], Tensor], images: Tensor) -> None:
        """``exact`` is in fp64; ``images [films, 3, H, W]`` are on the device that is timed."""
        self.eager = eager
        self.images = images
        with torch.no_grad():
            self.truth = torch.cat([exact(x.double()).cpu() for x in torch.split(images, 1)])
        self._eager_logits: dict[int, Tensor] = {}

    def check(self, call: Callable[[Tensor], Tensor], batch: int) -> BudgetUse:
        """The budget that ``call`` uses in batches of ``batch`` films, the last filled up."""
        if batch not in self._eager_logits:
            self._eager_logits[batch] = self._logits(self.eager, batch)
        logits = self._logits(call, batch)
        return budget_use("logits", logits, self._eager_logits[batch], self.truth)

    def _logits(self, call: Callable[[Tensor], Tensor], batch: int) -> Tensor:
        films = len(self.images)
        padded = self.images[torch.arange(math.ceil(films / batch) * batch) % films]
        with torch.no_grad():
            return torch.cat([call(x).cpu() for x in torch.split(padded, batch)])[:films]


class TrainingStep:
    """Forward, cross-entropy, backward and AdamW, in mixed precision around fp32 parameters."""

    def __init__(
        self, model: nn.Module, call: Callable[[Tensor], Tensor], dtype: torch.dtype
    ) -> None:
        self.model = model
        self.call = call
        self.dtype = dtype
        self.optimizer = torch.optim.AdamW(model.parameters(), lr=LEARNING_RATE, fused=True)

    def gradients(self, images: Tensor, labels: Tensor) -> Tensor:
        """Loss backward; returns the loss. Gradients lie in the parameters."""
        self.optimizer.zero_grad(set_to_none=True)
        low = self.dtype in (torch.bfloat16, torch.float16)
        with torch.autocast(images.device.type, self.dtype) if low else nullcontext():
            logits = self.call(images)
            loss = functional.cross_entropy(logits.float() if low else logits, labels)
        loss.backward()  # type: ignore[no-untyped-call]
        return loss.detach()

    def __call__(self, batch: Sequence[Tensor]) -> None:
        """One step on ``(images, labels)``."""
        self.gradients(*batch)
        self.optimizer.step()

    def held_bytes(self) -> int:
        """Bytes of parameters, buffers and the optimiser's state."""
        state = [
            value
            for values in self.optimizer.state.values()
            for value in values.values()
            if isinstance(value, Tensor)
        ]
        return tensor_bytes(state) + module_bytes(self.model)


class TrainingTruth:
    """The gradient of all parameters for one batch, as one vector.

    Rounding sends single activations across ReLU's kink and batch norm spreads that over the batch,
    so single elements say little; the relative error of the whole gradient is compared with eager
    PyTorch's own at the same precision.
    """

    def __init__(
        self, parameters: FilmModel, batch: tuple[Tensor, Tensor], dtype: torch.dtype
    ) -> None:
        self.batch = batch
        self.truth = self._gradient(parameters, torch.float64)
        self.eager_error = self._relative_error(self._gradient(parameters, dtype))
        self.unit = torch.finfo(dtype).eps

    def check(self, step: TrainingStep) -> BudgetUse:
        """Relative error of the gradient; parameters are as the truth's, before any update."""
        step.gradients(*self.batch)
        gradient = _flat_gradient(step.model)
        error = self._relative_error(gradient)
        allowed = EAGER_ERROR_FACTOR * self.eager_error + ROUNDING_UNITS * self.unit
        finite = bool(gradient.isfinite().all())
        return BudgetUse("gradient", error, allowed, error, allowed, finite)

    def _gradient(self, parameters: FilmModel, dtype: torch.dtype) -> Tensor:
        images, labels = self.batch
        exact = dtype == torch.float64
        model = copy.deepcopy(parameters).to(images.device).train()
        step = TrainingStep(model.double() if exact else model, model, dtype)
        step.gradients(images.double() if exact else images, labels)
        return _flat_gradient(model)

    def _relative_error(self, gradient: Tensor) -> float:
        return float((gradient - self.truth).norm() / self.truth.norm())


def _flat_gradient(model: nn.Module) -> Tensor:
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return torch.cat([gradient.detach().double().flatten() for gradient in gradients])


def module_bytes(module: nn.Module) -> int:
    """Bytes of parameters and buffers."""
    return tensor_bytes([*module.parameters(), *module.buffers()])


def tensor_bytes(tensors: Sequence[Tensor]) -> int:
    """Bytes of all elements."""
    return sum(t.numel() * t.element_size() for t in tensors)
