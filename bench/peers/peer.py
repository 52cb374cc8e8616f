"""What a peer is: an alternative that is timed beside others, in one way or several.

A **variant** is one way in which a peer can do a case. All that run a task and are right are timed,
and the fastest counts. What a variant needs before the call (padding a head dimension,
concatenating sources) is done outside of the timing, in its favour.
"""

import os
import shutil
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hmc_fast.bench.cases import PASSES, Case, Inputs, Kind, Task
from hmc_fast.kernels import attention, multi_scale_attention
from hmc_fast.kernels.capability import reasons_against
from hmc_fast.models import Attend, attention_blocks, model_entry

Family = Literal["ours", "attention", "compiled", "reference", "runtime"]
Tensors = Callable[[Sequence[Tensor]], list[Tensor]]
WhyNot = Callable[[Case, torch.dtype, torch.device], str | None]


@dataclass(frozen=True)
class BoundCall:
    """A variant bound to one set of inputs of an operator or a block.

    ``forward`` gives the outputs in the variant's own layout, for which ``d_outs`` are the
    cotangents; ``results`` and ``gradients`` bring outputs and the gradients of ``leaves`` to the
    layout of the case: ``outs[s] [B, M, H, Dv_s]`` and dq, dks, dvs.
    """

    forward: Callable[[], list[Tensor]]
    leaves: list[Tensor]
    d_outs: list[Tensor]
    results: Tensors = list
    gradients: Tensors = list


@dataclass(frozen=True)
class Variant:
    """One way to do an operator case; ``name`` says in words which."""

    name: str
    bind: Callable[[Case, Inputs], BoundCall]
    tasks: tuple[Task, ...] = PASSES


def as_it_is(module: nn.Module, example: Tensor) -> Callable[[Tensor], Tensor]:
    """The module itself."""
    return module


@dataclass(frozen=True)
class ModuleVariant:
    """One way to run a block or a model.

    Args:
        name: in words.
        backend: of the operators in the attention blocks.
        attend: takes the operators' place in the blocks, where it is not None.
        build: a call from the module in that state and an example of its input.
    """

    name: str
    backend: str = "reference"
    attend: Attend | None = None
    build: Callable[[nn.Module, Tensor], Callable[[Tensor], Tensor]] = as_it_is

    def prepare(self, module: nn.Module, example: Tensor) -> Callable[[Tensor], Tensor]:
        """Set the attention of ``module``, which keeps its parameters, and build the call."""
        for block in attention_blocks(module):
            block.backend = self.backend
            block.attend = self.attend
        return self.build(module, example)


def _nothing(case: Case, dtype: torch.dtype, device: torch.device) -> str | None:
    return None


@dataclass(frozen=True)
class Peer:
    """A named alternative.

    Args:
        name: as on the command line and in records.
        family: what it is compared as.
        colour: in plots.
        help: one line.
        operators: its variants of an operator case, or None.
        blocks: how it runs blocks; empty where it does not.
        models: how it runs models; empty where it does not.
        why_not: the reason why a case cannot run, where that is known without trying.
        trainable: its call of a model computes with the model's current parameters.
        slow_on_cpu: kinds of cases for which it must be named to run on a CPU.
    """

    name: str
    family: Family
    colour: str
    help: str
    operators: Callable[[Case], list[Variant]] | None = None
    blocks: tuple[ModuleVariant, ...] = ()
    models: tuple[ModuleVariant, ...] = ()
    why_not: WhyNot = _nothing
    trainable: bool = True
    slow_on_cpu: tuple[Kind, ...] = ()

    def does(self, kind: Kind) -> bool:
        """Whether it has variants for cases of ``kind``."""
        offers: dict[Kind, Any] = {
            "operator": self.operators,
            "block": self.blocks,
            "model": self.models,
        }
        return bool(offers[kind])


def grad_leaves(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Detached tensors that require gradients, in their own strides."""
    return [tensor.detach().requires_grad_() for tensor in tensors]


def split_leaves(leaves: list[Tensor]) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """``[q, *ks, *vs]`` as q, ks and vs."""
    sources = len(leaves) // 2
    return leaves[0], leaves[1 : 1 + sources], leaves[1 + sources :]


def compiled(
    module: nn.Module, example: Tensor, mode: str | None = None
) -> Callable[[Tensor], Tensor]:
    """``torch.compile`` of a module, in one graph."""
    whole: Callable[[Tensor], Tensor] = torch.compile(
        module, fullgraph=True, dynamic=False, mode=mode
    )
    return whole


def why_no_compiler(case: Case, dtype: torch.dtype, device: torch.device) -> str | None:
    """The reason why ``torch.compile`` cannot run on ``device``, or None."""
    compilers = [os.environ.get("CXX", "g++"), "g++", "clang++"]
    if device.type == "cpu" and not any(shutil.which(compiler) for compiler in compilers):
        return "torch.compile needs a C++ compiler on the CPU: install g++"
    return None


def why_no_attention(case: Case) -> str | None:
    """The reason why exchanging the attention changes nothing, or None."""
    if case.kind == "model" and not model_entry(case.subject).has_attention:
        return "the model has no attention"
    return None


def why_no_backend(
    backend: str, case: Case, dtype: torch.dtype, device: torch.device
) -> str | None:
    """Why a kernel backend cannot run every attention call of the case, or None."""
    problems = case.problems(dtype, device)
    reasons = [reason for p in problems for reason in reasons_against(p, backend)]
    return why_no_attention(case) or "; ".join(dict.fromkeys(reasons)) or None


def operator_variants(backend: str, name: str) -> Callable[[Case], list[Variant]]:
    """The one variant of a backend, for :attr:`Peer.operators`; ``name`` says what it does."""
    return lambda case: [Variant(name, partial(_bind_operator, backend))]


def _bind_operator(backend: str, case: Case, inputs: Inputs) -> BoundCall:
    leaves = grad_leaves(inputs.leaves)
    q, ks, vs = split_leaves(leaves)

    def forward() -> list[Tensor]:
        if len(ks) == 1:
            return [attention(q, ks[0], vs[0], backend=backend)[0]]
        return multi_scale_attention(q, ks, vs, backend=backend)[0]

    return BoundCall(forward, leaves, inputs.d_outs)
