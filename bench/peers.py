"""What attends in a case: our operators and every alternative, each as it would best do it.

A peer offers variants, best first; the first that runs a pass and is right is the one timed. What
a variant needs before the call (padding a head dimension, concatenating sources) is done outside
of the timing, in the peer's favour.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hmc_fast.bench.candidates import why_no_compiler
from hmc_fast.bench.cases import Case, Inputs
from hmc_fast.bench.work import PASSES, Pass
from hmc_fast.kernels import AttentionProblem, attention, multi_scale_attention, reference
from hmc_fast.kernels.capability import reasons_against

Identity = Callable[[Sequence[Tensor]], list[Tensor]]


@dataclass(frozen=True)
class BoundCall:
    """A variant bound to one set of inputs.

    ``forward`` gives the outputs in the variant's own layout, for which ``d_outs`` are the
    cotangents; ``results`` and ``gradients`` bring outputs and the gradients of ``leaves`` to the
    layout of the case: ``outs[s] [B, M, H, Dv_s]`` and dq, dks, dvs.
    """

    forward: Callable[[], list[Tensor]]
    leaves: list[Tensor]
    d_outs: list[Tensor]
    results: Identity = list
    gradients: Identity = list


@dataclass(frozen=True)
class Variant:
    """One way for a peer to do a case; ``how`` says which."""

    how: str
    bind: Callable[[Case, Inputs], BoundCall]
    passes: tuple[Pass, ...] = PASSES


@dataclass(frozen=True)
class Peer:
    """A named alternative with its variants for a case, or the reason it has none there."""

    name: str
    variants: Callable[[Case], list[Variant]]
    why_not: Callable[[Case, torch.dtype, torch.device], str | None] = lambda c, t, d: None
    ours: bool = False


def grad_leaves(tensors: Sequence[Tensor]) -> list[Tensor]:
    """Detached tensors that require gradients, in their own strides."""
    return [tensor.detach().requires_grad_() for tensor in tensors]


def _bind_operator(case: Case, inputs: Inputs, backend: str) -> BoundCall:
    leaves = grad_leaves(inputs.leaves)
    q, ks, vs = leaves[0], leaves[1 : 1 + len(inputs.ks)], leaves[1 + len(inputs.ks) :]

    def forward() -> list[Tensor]:
        if len(ks) == 1:
            return [attention(q, ks[0], vs[0], backend=backend)[0]]
        return multi_scale_attention(q, ks, vs, backend=backend)[0]

    return BoundCall(forward, leaves, inputs.d_outs)


def _compiled_reference(case: Case) -> Callable[[Case, Inputs], BoundCall]:
    """A binder whose calls share one compiled function."""
    scale = case.qk_head_dim**-0.5

    def whole(q: Tensor, ks: list[Tensor], vs: list[Tensor]) -> list[Tensor]:
        # One query chunk: the compiler sees the scores in one piece and may fuse around them.
        return reference.multi_scale_attention(q, ks, vs, scale, query_chunk=case.queries)[0]

    compiled = torch.compile(whole, fullgraph=True, dynamic=False)

    def bind(_: Case, inputs: Inputs) -> BoundCall:
        leaves = grad_leaves(inputs.leaves)
        q, ks, vs = leaves[0], leaves[1 : 1 + len(inputs.ks)], leaves[1 + len(inputs.ks) :]
        return BoundCall(lambda: compiled(q, ks, vs), leaves, inputs.d_outs)

    return bind


def problem_of(case: Case, dtype: torch.dtype, device: torch.device) -> AttentionProblem:
    """What the capability table needs to know of a case."""
    return AttentionProblem(
        case.batch,
        case.queries,
        case.heads,
        case.tokens,
        case.v_head_dims,
        case.qk_head_dim,
        dtype,
        device,
        case.name,
    )


def why_no_triton(case: Case, dtype: torch.dtype, device: torch.device) -> str | None:
    """Why the fused kernels cannot be timed on a case, or None."""
    if device.type != "cuda":
        return "the fused kernels need an NVIDIA GPU; Triton's interpreter is for tests of results"
    return "; ".join(reasons_against(problem_of(case, dtype, device), "triton")) or None


TRITON = Peer(
    "triton",
    lambda case: [Variant("one launch per pass", lambda c, i: _bind_operator(c, i, "triton"))],
    why_no_triton,
    ours=True,
)
EAGER = Peer(
    "eager",
    lambda case: [
        Variant(
            "reference in query chunks, fp32 inside", lambda c, i: _bind_operator(c, i, "reference")
        )
    ],
)
COMPILED = Peer(
    "compiled",
    lambda case: [Variant("torch.compile of the reference", _compiled_reference(case))],
    lambda case, dtype, device: why_no_compiler(device),
)
