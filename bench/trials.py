"""From a peer's variant to a call that was checked and can be timed, for each kind of case."""

import copy
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from hmc_fast.bench.cases import PASSES, Case, Inputs, Task, model_of
from hmc_fast.bench.measuring.clock import TimedCall
from hmc_fast.bench.measuring.memory import added_peak_mib
from hmc_fast.bench.parity import (
    PARAMETER_SEED,
    LogitTruth,
    TrainingStep,
    TrainingTruth,
    drawn_block,
    module_bytes,
    parity_films,
    randomise_gates,
    tensor_bytes,
    truth_of,
)
from hmc_fast.bench.peers.peer import BoundCall, ModuleVariant, Peer, Variant
from hmc_fast.kernels.testing import BudgetUse
from hmc_fast.models import FilmModel

INPUT_SETS = 3
CALIBRATION_SIZE = 96
CALIBRATION_IMAGES = 4


@dataclass(frozen=True)
class Trial:
    """A call that ran, and the budget that its results used.

    ``held_bytes`` are what it holds beside the call's memory; ``fields`` go into its row.
    """

    use: BudgetUse
    call: TimedCall
    held_bytes: Callable[[], int] = lambda: 0
    fields: Mapping[str, Any] = field(default_factory=dict)


class Trials(Protocol):
    """All trials of a case at one precision, on the same inputs and against the same truth."""

    def variants(self, peer: Peer) -> Sequence[Variant | ModuleVariant]:
        """In the order of tables."""

    def make(self, peer: Peer, variant: Any, task: Task) -> Trial:
        """Run a variant and check its results; raises whatever the peer raises."""

    def peak_mib(self, peer: Peer, trial: Trial) -> float | None:
        """Peak memory of the call, None where the system does not tell."""


class AttentionTrials:
    """Operators and blocks."""

    def __init__(self, case: Case, dtype: torch.dtype, device: torch.device) -> None:
        self.case = case
        self.device = device
        self.inputs = [case.inputs(dtype, device, seed) for seed in range(INPUT_SETS)]
        self.truth = truth_of(case, self.inputs[0])
        self._variants: dict[str, list[Variant]] = {}
        self._differentiable: dict[tuple[str, str], tuple[BudgetUse, list[BoundCall]]] = {}

    def variants(self, peer: Peer) -> Sequence[Variant]:
        if peer.name not in self._variants:
            self._variants[peer.name] = attention_variants(self.case, peer)
        return self._variants[peer.name]

    def make(self, peer: Peer, variant: Variant, task: Task) -> Trial:
        key = (peer.name, variant.name)
        if task != "forward" and key in self._differentiable:
            use, calls = self._differentiable[key]
        else:
            calls = [variant.bind(self.case, inputs) for inputs in self.inputs]
            for leaf in (leaf for call in calls for leaf in call.leaves):
                leaf.requires_grad_(task != "forward")
            use = self.truth.check(results_of(calls[0], task))
            for call in calls[1:]:
                results_of(call, task)
            if task != "forward":
                self._differentiable[key] = use, calls
        return Trial(use, _timed(calls, task))

    def peak_mib(self, peer: Peer, trial: Trial) -> float | None:
        """What the call adds to its inputs."""
        return added_peak_mib(lambda: trial.call.run(trial.call.prepare(0)), self.device)


def attention_variants(case: Case, peer: Peer) -> list[Variant]:
    """The ways in which a peer does an operator or a block."""
    if case.kind == "block":
        return [_block_variant(case, module) for module in peer.blocks]
    return peer.operators(case) if peer.operators is not None else []


def _block_variant(case: Case, module: ModuleVariant) -> Variant:
    block = drawn_block(case.channels)
    prepared: list[Callable[[Tensor], Tensor]] = []

    def bind(_: Case, inputs: Inputs) -> BoundCall:
        block.to(inputs.q.device, inputs.q.dtype)
        x = inputs.q.detach().requires_grad_()
        if not prepared:
            prepared.append(module.prepare(block, x))
        call = prepared[0]
        return BoundCall(lambda: [call(x)], [x, *block.parameters()], inputs.d_outs)

    return Variant(module.name, bind)


def results_of(call: BoundCall, task: Task) -> list[Tensor]:
    """Outputs and, unless ``task`` is forward, gradients in the layout of the case."""
    if task == "forward":
        with torch.no_grad():
            return call.results(call.forward())
    outs = call.forward()
    gradients = torch.autograd.grad(outs, call.leaves, call.d_outs)
    return call.results([out.detach() for out in outs]) + call.gradients(gradients)


def _timed(calls: Sequence[BoundCall], task: Task) -> TimedCall:
    def forward(call: BoundCall) -> list[Tensor]:
        with torch.no_grad():
            return call.forward()

    def backward(state: tuple[BoundCall, list[Tensor]]) -> tuple[Tensor, ...]:
        call, outs = state
        return torch.autograd.grad(outs, call.leaves, call.d_outs)

    def both(call: BoundCall) -> tuple[Tensor, ...]:
        return torch.autograd.grad(call.forward(), call.leaves, call.d_outs)

    if task == "backward":
        return TimedCall(backward, lambda i: (calls[i], calls[i].forward()))
    return TimedCall(forward if task == "forward" else both, lambda i: calls[i])


class ModelTrials:
    """Models with random parameters: inference in the dtype, or the mixed-precision step."""

    def __init__(self, case: Case, dtype: torch.dtype, device: torch.device) -> None:
        self.case = case
        self.dtype = dtype
        self.device = device
        self.parameters = lifelike_model(case.subject, case.size)
        training = "training" in case.tasks
        image_dtype = torch.float32 if training else dtype
        labels = torch.arange(case.batch, device=device) % 2
        self.batches = [
            (case.images(image_dtype, device, seed), labels) for seed in range(INPUT_SETS)
        ]
        if training:
            self.truth: LogitTruth | TrainingTruth = TrainingTruth(
                self.parameters, self.batches[0], dtype
            )
            return
        eager = copy.deepcopy(self.parameters).to(device, dtype)
        images = case.images(dtype, device, INPUT_SETS, parity_films(case.size))
        self.truth = LogitTruth(copy.deepcopy(eager).double(), eager, images)

    def variants(self, peer: Peer) -> Sequence[ModuleVariant]:
        return peer.models

    def make(self, peer: Peer, variant: ModuleVariant, task: Task) -> Trial:
        model = copy.deepcopy(self.parameters).to(self.device)
        if isinstance(self.truth, TrainingTruth):
            call = variant.prepare(model.train(), self.batches[0][0])
            step = TrainingStep(model, call, self.dtype)
            use = self.truth.check(step)
            step(self.batches[0])
            return Trial(use, TimedCall(step, self.batches.__getitem__), step.held_bytes)
        call = variant.prepare(model.to(self.dtype), self.batches[0][0])
        use = self.truth.check(call, self.case.batch)
        held = module_bytes(model)
        timed = TimedCall(partial(infer, call), lambda i: self.batches[i][0])
        return Trial(use, timed, lambda: held)

    def peak_mib(self, peer: Peer, trial: Trial) -> float | None:
        """Everything: parameters, images and what the call adds.

        None for runtimes, which keep their memory between calls, so that a call adds little.
        """
        if peer.family == "runtime":
            return None
        added = added_peak_mib(lambda: trial.call.run(trial.call.prepare(0)), self.device)
        if added is None:
            return None
        return added + (trial.held_bytes() + tensor_bytes(self.batches[0][:1])) / 2**20


def infer(call: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """Without gradients.

    Not in inference mode: a graph's replays and compiled code meet plain tensors elsewhere.
    """
    with torch.no_grad():
        return call(images)


def lifelike_model(name: str, size: int) -> FilmModel:
    """Random but lifelike parameters: gates open, batch-norm statistics of real activations.

    Fresh batch norms in evaluation mode let activations grow a hundredfold, and closed gates would
    hide the attention from the parity check.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(PARAMETER_SEED)
        model = model_of(name, size, "reference")
        side = model.config.image_size or CALIBRATION_SIZE
        images = torch.randn(CALIBRATION_IMAGES, 3, side, side)
    randomise_gates(model)
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    usual = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None
    if norms:
        with torch.no_grad():
            model.train()(images)
    for norm, momentum in zip(norms, usual, strict=True):
        norm.momentum = momentum
    model.eval()
    return model


def trials_of(case: Case, dtype: torch.dtype, device: torch.device) -> Trials:
    """Inputs and truth of a case on ``device``; takes their memory."""
    if case.kind == "model":
        return ModelTrials(case, dtype, device)
    return AttentionTrials(case, dtype, device)


def tasks_of(variant: Variant | ModuleVariant) -> tuple[Task, ...]:
    """The tasks that a variant can do."""
    return variant.tasks if isinstance(variant, Variant) else (*PASSES, "inference", "training")
