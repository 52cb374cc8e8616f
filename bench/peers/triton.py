"""Our fused Triton kernels, with eager PyTorch around them or compiled code."""

import torch

from hmc_fast.bench.cases import Case
from hmc_fast.bench.peers.peer import (
    ModuleVariant,
    Peer,
    compiled,
    operator_variants,
    why_no_attention,
    why_no_backend,
)


def _why_not(case: Case, dtype: torch.dtype, device: torch.device) -> str | None:
    if plain := why_no_attention(case):
        return plain
    if device.type != "cuda":
        return "the fused kernels need an NVIDIA GPU; Triton's interpreter is for tests of results"
    return why_no_backend("triton", case, dtype, device)


TRITON = Peer(
    "triton",
    "ours",
    "#009e73",
    "fused Triton attention, eager PyTorch around it",
    operators=operator_variants("triton", "one launch per pass"),
    blocks=(ModuleVariant("fused attention and projection", "triton"),),
    models=(ModuleVariant("fused kernels, eager around them", "triton"),),
    why_not=_why_not,
)
TRITON_COMPILED = Peer(
    "triton_compiled",
    "ours",
    "#66d9b5",
    "fused Triton attention, the rest through torch.compile",
    models=(ModuleVariant("fused kernels, the rest compiled", "triton", build=compiled),),
    why_not=_why_not,
)
