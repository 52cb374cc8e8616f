"""Compiled FlexAttention, with tiles that fit our head dims.

Inductor picks a tile by q's head dim alone: with values of 256 columns its choice needs more shared
memory than a GPU has, so that the peer would be lost, in our favour.
"""

from collections.abc import Callable
from functools import partial
from typing import Any

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


def _tiles(queries: int, keys: int, warps: int, stages: int) -> dict[str, Any]:
    """Forward and both halves of the backward; theirs are squarer, for two tiles of outputs."""
    small = min(queries, keys, 32)
    return {
        "BLOCK_M": queries,
        "BLOCK_N": keys,
        "BLOCK_M1": small,
        "BLOCK_N1": keys,
        "BLOCK_M2": keys,
        "BLOCK_N2": small,
        "num_warps": warps,
        "num_stages": stages,
    }


KERNEL_OPTIONS: dict[str, dict[str, Any]] = {
    "tiles of its choice": {},
    "tiles 128×64, 8 warps, 2 stages": _tiles(128, 64, 8, 2),
    "tiles 64×64, 4 warps, 2 stages": _tiles(64, 64, 4, 2),
    "tiles 64×32, 4 warps, 2 stages": _tiles(64, 32, 4, 2),
    "BACKEND=FLASH": {"BACKEND": "FLASH"},
}
"""Kernel options by what they are called in tables."""
MODEL_WAYS = 2
"""A whole model is compiled for each way, which takes minutes."""


def attend_by_flex(q: Tensor, k: Tensor, v: Tensor, scale: float, options: Any = None) -> Tensor:
    """``flex_attention`` without a mask or a score function, ``[B, H, N, D]``."""
    out: Tensor = flex_attention(q, k, v, scale=scale, kernel_options=options)
    return out


def _with_lse(
    q: Tensor, k: Tensor, v: Tensor, scale: float, options: Any = None
) -> tuple[Tensor, Tensor]:
    aux_request = AuxRequest(lse=True)
    out, aux = flex_attention(q, k, v, scale=scale, return_aux=aux_request, kernel_options=options)
    assert aux.lse is not None
    return out, aux.lse


def _compiled(function: Callable[..., object], mode: str | None = None) -> Callable[..., object]:
    return torch.compile(function, fullgraph=True, dynamic=False, mode=mode)


def _ways() -> list[tuple[str, dict[str, Any] | None, str | None]]:
    """Name, kernel options and compiler mode of every way; a CPU has one."""
    if not torch.cuda.is_available():
        return [("", None, None)]
    ways = [(f", {name}", options or None, None) for name, options in KERNEL_OPTIONS.items()]
    return [*ways, (", max-autotune", None, "max-autotune-no-cudagraphs")]


def _variants(case: Case) -> list[Variant]:
    variants = []
    for name, options, mode in _ways():
        attend: AttendOnce = _compiled(partial(attend_by_flex, options=options), mode)  # type: ignore[assignment]  # compile keeps the type
        concatenated = partial(bind_concatenated, attend, equal_head_dims=False, one_call=False)
        if case.attention.sources == 1:
            variants.append(Variant(f"one call{name}", concatenated))
            continue
        with_lse: AttendOnceWithLse = _compiled(partial(_with_lse, options=options), mode)  # type: ignore[assignment]  # as above
        merged = partial(bind_merged, with_lse, equal_head_dims=False)
        variants.append(Variant(f"per source, merged by lse{name}", merged))
        calls = f"sources concatenated, a call per source{name}"
        variants.append(Variant(calls, concatenated))
    return variants


def _modules(what: str, ways: int | None = None) -> tuple[ModuleVariant, ...]:
    """One for each of the first ``ways``, for all where it is None."""
    return tuple(
        ModuleVariant(
            f"{what}{name}",
            attend=attend_sources(partial(attend_by_flex, options=options), equal_head_dims=False),
            build=compiled if mode is None else partial(compiled, mode=mode),
        )
        for name, options, mode in _ways()[:ways]
    )


def _why_not(case: Case, dtype: torch.dtype, device: torch.device) -> str | None:
    if device.type == "cpu" and "training" in case.tasks:
        return "FlexAttention does not support backward on CPU"
    return why_no_attention(case) or why_no_compiler(case, dtype, device)


FLEX = Peer(
    "flex",
    "attention",
    "#56b4e9",
    "compiled FlexAttention",
    operators=_variants,
    blocks=_modules("torch.compile of the block"),
    models=_modules("torch.compile with FlexAttention", MODEL_WAYS),
    why_not=_why_not,
    slow_on_cpu=("operator", "block", "model"),
)
