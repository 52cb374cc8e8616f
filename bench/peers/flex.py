"""Compiled FlexAttention."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, flex_attention

from hmc_fast.bench.cases import Case
from hmc_fast.bench.peers.layouts import (
    AttendOnce,
    AttendOnceWithLse,
    attend_sources,
    bind_concatenated,
    bind_merged,
)
from hmc_fast.bench.peers.peer import (
    ModuleVariant,
    Peer,
    Variant,
    compiled,
    why_no_attention,
    why_no_compiler,
)


def attend_by_flex(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """``flex_attention`` without a mask or a score function, ``[B, H, N, D]``."""
    out: Tensor = flex_attention(q, k, v, scale=scale)
    return out


def _with_lse(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    out, aux = flex_attention(q, k, v, scale=scale, return_aux=AuxRequest(lse=True))
    assert aux.lse is not None
    return out, aux.lse


def _compiled(function: Callable[..., object]) -> Callable[..., object]:
    return torch.compile(function, fullgraph=True, dynamic=False)


def _variants(case: Case) -> list[Variant]:
    attend: AttendOnce = _compiled(attend_by_flex)  # type: ignore[assignment]  # compile keeps the type
    concatenated = partial(bind_concatenated, attend, equal_head_dims=False, one_call=False)
    if case.attention.sources == 1:
        return [Variant("one call", concatenated)]
    with_lse: AttendOnceWithLse = _compiled(_with_lse)  # type: ignore[assignment]  # as above
    return [
        Variant("per source, merged by lse", partial(bind_merged, with_lse, equal_head_dims=False)),
        Variant("sources concatenated, a call per source", concatenated),
    ]


def _why_not(case: Case, dtype: torch.dtype, device: torch.device) -> str | None:
    if device.type == "cpu" and "training" in case.tasks:
        return "FlexAttention does not support backward on CPU"
    return why_no_attention(case) or why_no_compiler(case, dtype, device)


_ATTEND = attend_sources(attend_by_flex, equal_head_dims=False)
FLEX = Peer(
    "flex",
    "attention",
    "#56b4e9",
    "compiled FlexAttention",
    operators=_variants,
    blocks=(ModuleVariant("torch.compile of the block", attend=_ATTEND, build=compiled),),
    models=(ModuleVariant("torch.compile with FlexAttention", attend=_ATTEND, build=compiled),),
    why_not=_why_not,
    slow_on_cpu=("operator", "block", "model"),
)
