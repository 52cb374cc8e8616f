"""Compiled FlexAttention."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor
from torch.nn.attention.flex_attention import AuxRequest, flex_attention

from hmc_fast.bench.candidates import why_no_compiler
from hmc_fast.bench.cases import Case, Inputs
from hmc_fast.bench.layouts import Attend, AttendWithLse, bind_concatenated, bind_merged
from hmc_fast.bench.peers import BoundCall, Peer, Variant


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
    one: Attend = _compiled(attend_by_flex)  # type: ignore[assignment]  # compile keeps the type
    concatenated = partial(_concatenated, one)
    if len(case.tokens) == 1:
        return [Variant("one call", concatenated)]
    with_lse: AttendWithLse = _compiled(_with_lse)  # type: ignore[assignment]  # as above
    return [
        Variant("per source, merged by lse", partial(_merged, with_lse)),
        Variant("sources concatenated, a call per source", concatenated),
    ]


def _concatenated(attend: Attend, case: Case, inputs: Inputs) -> BoundCall:
    return bind_concatenated(attend, case, inputs, equal_head_dims=False, one_call=False)


def _merged(attend: AttendWithLse, case: Case, inputs: Inputs) -> BoundCall:
    return bind_merged(attend, case, inputs, equal_head_dims=False)


FLEX = Peer("flex", _variants, lambda case, dtype, device: why_no_compiler(device))
