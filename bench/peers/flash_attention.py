"""FlashAttention-3 and -4 from their own packages, which take our head dims or padded ones.

Interfaces: Dao-AILab/flash-attention, ``hopper/flash_attn_interface.py`` and
``flash_attn/cute/interface.py``; both take ``[B, N, H, D]``.
"""

from collections.abc import Callable
from functools import cache, partial
from importlib import import_module
from importlib.util import find_spec
from inspect import signature
from typing import Any

import torch
from torch import Tensor

from hmc_fast.bench.cases import Case, Task
from hmc_fast.bench.peers.layouts import (
    AttendOnce,
    attend_sources,
    bind_concatenated,
    bind_merged,
    heads_first,
)
from hmc_fast.bench.peers.peer import ModuleVariant, Peer, Variant

THIRD_MODULES = ("flash_attn_interface", "flash_attn_3.flash_attn_interface")
"""Where releases of FlashAttention-3 keep their interface."""
FOURTH_MODULE = "flash_attn.cute.interface"
FOURTH_TILES = ((128, 64), (128, 80), (64, 64), (64, 128))
"""Queries × keys. Its own choice goes by d_qk alone, and 128 × 128 does not fit with d_v 256."""


def _installed(module: str) -> bool:
    try:
        return find_spec(module) is not None
    except ModuleNotFoundError:  # its parent package is missing
        return False


@cache
def _third() -> Callable[..., Any]:
    module = next(name for name in THIRD_MODULES if _installed(name))
    function: Callable[..., Any] = import_module(module).flash_attn_func
    return function


def _by_third(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    out = _third()(*map(heads_first, (q, k, v)), softmax_scale=scale)
    # Older releases return lse as well.
    return heads_first(out[0] if isinstance(out, tuple) else out)


def _by_fourth(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    function = import_module(FOURTH_MODULE).flash_attn_func
    out = function(*map(heads_first, (q, k, v)), softmax_scale=scale)
    return heads_first(out[0] if isinstance(out, tuple) else out)


def _fourth_with_tile(
    tile: tuple[int, int], q: Tensor, k: Tensor, v: Tensor, scale: float
) -> tuple[Tensor, Tensor]:
    function = import_module(FOURTH_MODULE)._flash_attn_fwd
    # Older releases name the two sides of a tile on their own.
    sides = dict(zip(("m_block_size", "n_block_size"), tile, strict=True))
    options = {"tile_mn": tile} if "tile_mn" in signature(function).parameters else sides
    out, lse, *_ = function(
        *map(heads_first, (q, k, v)), softmax_scale=scale, return_lse=True, **options
    )
    return heads_first(out), lse


def _out_of(attend: Callable[..., tuple[Tensor, Tensor]], *arguments: Any) -> Tensor:
    return attend(*arguments)[0]


def _both_widths(attend: AttendOnce, case: Case) -> list[Variant]:
    """With our head dims and with padded ones; several sources a call each."""
    several = case.attention.sources > 1
    calls = "sources concatenated, a call per source" if several else "one call"
    variants = []
    for equal in (False, True):
        how = "head dims padded to equal ones" if equal else "native head dims"
        bind = partial(bind_concatenated, attend, equal_head_dims=equal, one_call=False)
        variants.append(Variant(f"{calls}, {how}; backward not deterministic", bind))
    return variants


def _third_variants(case: Case) -> list[Variant]:
    return _both_widths(_by_third, case)


def _fourth_variants(case: Case) -> list[Variant]:
    forward: tuple[Task, ...] = ("forward",)
    variants = []
    for tile in FOURTH_TILES:
        attend = partial(_fourth_with_tile, tile)
        name = f"native head dims, tile {tile[0]}×{tile[1]}"
        if case.attention.sources == 1:
            once = partial(_out_of, attend)
            bind = partial(bind_concatenated, once, equal_head_dims=False, one_call=False)
            variants.append(Variant(f"one call, {name}", bind, forward))
        else:
            merged = partial(bind_merged, attend, equal_head_dims=False)
            variants.append(Variant(f"per source, merged by lse, {name}", merged, forward))
    return variants + _both_widths(_by_fourth, case)


def _why_not(
    modules: tuple[str, ...],
    package: str,
    majors: tuple[int, ...],
    case: Case,
    dtype: torch.dtype,
    device: torch.device,
) -> str | None:
    if device.type != "cuda":
        return "it needs an NVIDIA GPU"
    if not any(_installed(module) for module in modules):
        return f"{package} is not installed"
    if dtype not in (torch.float16, torch.bfloat16):
        return f"it computes in fp16 and bf16, not in {dtype}"
    major, minor = torch.cuda.get_device_capability(device)
    if major not in majors:
        return f"it has no kernels for sm_{major}{minor}"
    return None


def _blocks(attend: AttendOnce) -> tuple[ModuleVariant, ...]:
    """Eager around the call: torch.compile does not trace into it."""
    return tuple(
        ModuleVariant(
            f"eager block around it, {'padded' if equal else 'native'} head dims",
            attend=attend_sources(attend, equal_head_dims=equal),
        )
        for equal in (False, True)
    )


FLASH_ATTENTION_3 = Peer(
    "flash_attention_3",
    "attention",
    "#7a1f1f",
    "FlashAttention-3's own package, on Hopper; its backward is not deterministic",
    operators=_third_variants,
    blocks=_blocks(_by_third),
    why_not=partial(
        _why_not,
        THIRD_MODULES,
        "FlashAttention-3 (github.com/Dao-AILab/flash-attention, folder hopper)",
        (9,),
    ),
)
FLASH_ATTENTION_4 = Peer(
    "flash_attention_4",
    "attention",
    "#b5651d",
    "FlashAttention-4's own package, with tiles that fit our head dims",
    operators=_fourth_variants,
    blocks=_blocks(_by_fourth),
    why_not=partial(_why_not, (FOURTH_MODULE,), "flash-attn-4", (9, 10, 11)),
)
