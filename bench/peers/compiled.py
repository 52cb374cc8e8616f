"""``torch.compile`` through the reference attention."""

from collections.abc import Sequence

import torch
from torch import Tensor

from hmc_fast.bench.cases import Case, Inputs
from hmc_fast.bench.peers.peer import (
    BoundCall,
    ModuleVariant,
    Peer,
    Variant,
    compiled,
    grad_leaves,
    split_leaves,
    why_no_compiler,
)
from hmc_fast.kernels import reference


def reference_attend(
    q: Tensor, ks: Sequence[Tensor], vs: Sequence[Tensor]
) -> tuple[list[Tensor], Tensor]:
    """The reference in one query chunk: a compiler sees all scores and may fuse around them."""
    scale = q.shape[-1] ** -0.5
    outs, _, weights = reference.multi_scale_attention(q, ks, vs, scale, query_chunk=q.shape[1])
    return outs, weights


def _variants(case: Case) -> list[Variant]:
    def outs(q: Tensor, ks: list[Tensor], vs: list[Tensor]) -> list[Tensor]:
        return reference_attend(q, ks, vs)[0]

    whole = torch.compile(outs, fullgraph=True, dynamic=False)

    def bind(_: Case, inputs: Inputs) -> BoundCall:
        leaves = grad_leaves(inputs.leaves)
        q, ks, vs = split_leaves(leaves)
        return BoundCall(lambda: whole(q, ks, vs), leaves, inputs.d_outs)

    return [Variant("torch.compile of the reference", bind)]


COMPILED = Peer(
    "compiled",
    "compiled",
    "#0072b2",
    "torch.compile through the reference attention",
    operators=_variants,
    blocks=(ModuleVariant("torch.compile of the block", attend=reference_attend, build=compiled),),
    models=(
        ModuleVariant(
            "torch.compile through the reference", attend=reference_attend, build=compiled
        ),
    ),
    why_not=why_no_compiler,
    slow_on_cpu=("model",),
)
