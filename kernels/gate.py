"""The cross-compile gate: every shipped tile, built for its architecture without a GPU.

A tile passes if its kernel builds, fits the architecture's shared (and tensor) memory and computes
its products on the matrix units; a default tile must not spill registers either. Each tile is
built twice, on the variants that differ most: blocks that divide the tokens in fp16 (tf32 for
fp32), and ragged ones in bf16 (ieee).
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import asdict, dataclass, replace
from multiprocessing import get_context
from typing import Any

import torch
import triton
from torch import Tensor

from hmc_fast.kernels.fused import aot
from hmc_fast.kernels.fused.backward import (
    _attention_backward_kv_kernel,
    _attention_backward_q_kernel,
    _delta_kernel,
)
from hmc_fast.kernels.fused.forward import _attention_forward_kernel, _combine_splits_kernel
from hmc_fast.kernels.fused.launch import Launch
from hmc_fast.kernels.fused.planning import (
    Target,
    plan_backward,
    plan_forward,
    plan_gated_projection,
)
from hmc_fast.kernels.fused.projection import _gated_projection_kernel
from hmc_fast.kernels.fused.tiles import (
    SHARED_MEMORY_KIB,
    Tile,
    TileEntry,
    load_tiles,
)

ARCHITECTURES = tuple(SHARED_MEMORY_KIB)
TENSOR_MEMORY_COLUMNS = 512
"""Columns of a Blackwell data-centre multiprocessor's tensor memory (PTX ISA, tcgen05)."""
MATRIX_KERNELS = (
    "attention_forward",
    "attention_backward_q",
    "attention_backward_kv",
    "attention_backward_k",
    "gated_projection",
)
HEADER = (
    "kernel",
    "problem",
    "tile",
    "default",
    "registers",
    "spilled bytes",
    "shared KiB",
    "products by",
    "verdict",
)
_RAGGED_TOKENS, _WHOLE_TOKENS = 1000, 1024
_HEADS = 2


@dataclass(frozen=True)
class CompiledTile:
    """What one build of one tile uses, and what is wrong with it (empty where it passes)."""

    architecture: str
    kernel: str
    problem: str
    tile: str
    default: bool
    registers: int
    stack_bytes: int
    shared_kib: float
    shared_limit_kib: int
    mma: str
    faults: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "faults": list(self.faults)}

    def cells(self) -> list[str]:
        """The row of a table with :data:`HEADER`."""
        return [
            self.kernel,
            self.problem,
            self.tile,
            "yes" if self.default else "",
            str(self.registers),
            str(self.stack_bytes),
            f"{self.shared_kib:.0f} of {self.shared_limit_kib}",
            self.mma,
            "; ".join(self.faults) or "passes",
        ]


@dataclass(frozen=True)
class _Variant:
    """One tile on one representative problem, small enough to be sent to another process."""

    architecture: str
    kernel: str
    entry: TileEntry
    tile: Tile
    default: bool
    dtype: torch.dtype
    precision: str
    tokens: int
    d_vs: tuple[int, ...]

    def launch(self) -> Launch:
        only = TileEntry(self.entry.bits, 256, 512, None, (self.tile,))
        shipped = load_tiles(self.architecture)
        tiles = replace(shipped, entries={**shipped.entries, self.kernel: [only]})
        multiprocessors = 128 if self.kernel == "combine_splits" else 1
        planned = _PLANS[self.kernel](Target(tiles, multiprocessors, self.precision), self)
        return next(launch for launch in planned if _LAUNCHES[self.kernel](launch))

    @property
    def problem(self) -> str:
        dtype = str(self.dtype).removeprefix("torch.").replace("float", "fp").replace("bfp", "bf")
        precision = f" {self.precision}" if self.dtype == torch.float32 else ""
        shape = f"d_qk {self.entry.max_d_qk}, d_v {'+'.join(map(str, self.d_vs))}"
        if self.kernel == "gated_projection":
            shape = f"{self.d_vs[0]} channels"
        return f"{dtype}{precision}, {shape}, {self.tokens} tokens"


def check_tiles(
    architectures: Sequence[str] = ARCHITECTURES,
    *,
    defaults_only: bool = False,
    progress: Callable[[str, int, int], None] = lambda what, done, total: None,
) -> list[CompiledTile]:
    """Build every shipped tile of ``architectures``, in as many processes as there are cores.

    Needs triton and its ``cuobjdump``, but no GPU. Raises ``ValueError`` for an unknown
    architecture.
    """
    unknown = sorted(set(architectures) - set(ARCHITECTURES))
    if unknown:
        raise ValueError(f"unknown architecture {unknown[0]!r}; use {', '.join(ARCHITECTURES)}")
    variants = [
        variant
        for architecture in architectures
        for variant in _variants(architecture)
        if variant.default or not defaults_only
    ]
    compiled = []
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        for tile in pool.map(_compile, variants):
            compiled.append(tile)
            progress(f"{tile.architecture} {tile.kernel}", 1, len(variants))
    return compiled


def as_markdown(tiles: Sequence[CompiledTile]) -> str:
    """A table for each architecture, headed by the release of Triton that built them."""
    failing = sum(bool(tile.faults) for tile in tiles)
    lines = [
        f"# Compiled tiles, Triton {triton.__version__}",
        "",
        f"{len(tiles)} builds, {failing} failing. Made without a GPU by "
        "`hmc-fast kernels resources --out FILE`.",
    ]
    for architecture in dict.fromkeys(tile.architecture for tile in tiles):
        lines += ["", f"## {architecture}", "", "| " + " | ".join(HEADER) + " |"]
        lines.append("|" + "---|" * len(HEADER))
        rows = (tile.cells() for tile in tiles if tile.architecture == architecture)
        lines += ["| " + " | ".join(row) + " |" for row in rows]
    return "\n".join(lines) + "\n"


def _variants(architecture: str) -> Iterator[_Variant]:
    for kernel, entries in load_tiles(architecture).entries.items():
        for entry in entries:
            for tile in entry.tiles:
                yield from _variants_of_tile(architecture, kernel, entry, tile)


def _variants_of_tile(
    architecture: str, kernel: str, entry: TileEntry, tile: Tile
) -> Iterator[_Variant]:
    if entry.bits == 16:
        kinds = [(torch.bfloat16, "ieee", _RAGGED_TOKENS), (torch.float16, "ieee", _WHOLE_TOKENS)]
    else:
        kinds = [(torch.float32, "ieee", _RAGGED_TOKENS), (torch.float32, "tf32", _WHOLE_TOKENS)]
    for dtype, precision, tokens in kinds:
        tokens = min(tokens, (entry.max_queries or tokens) - (tokens % 16 != 0))
        for d_vs in _value_head_dims(architecture, kernel, entry):
            default = tile is entry.tiles[0]
            yield _Variant(
                architecture, kernel, entry, tile, default, dtype, precision, tokens, d_vs
            )


def _value_head_dims(architecture: str, kernel: str, entry: TileEntry) -> list[tuple[int, ...]]:
    """Representative heads of an entry; wide heads have launches of their own in the backward."""
    chunk = load_tiles(architecture).value_columns[entry.bits].chunk
    if kernel == "gated_projection":
        return [(512,)]
    if kernel == "attention_backward_k":
        return [(2 * chunk,)]
    if entry.max_d_v > chunk:
        return [(entry.max_d_v - chunk, chunk)]
    if kernel == "attention_backward_kv" and entry.bits == 16 and entry.max_d_v == chunk:
        return [(entry.max_d_v,), (2 * chunk,)]
    return [(entry.max_d_v,)]


def _compile(variant: _Variant) -> CompiledTile:
    launch = variant.launch()
    limit = SHARED_MEMORY_KIB[variant.architecture]
    try:
        used = aot.resources(aot.compile_for(launch, variant.architecture))
        faults = tuple(_faults(variant, used, limit))
    except Exception as error:
        # Triton raises many kinds of errors for a tile that cannot be built: all are findings.
        used = aot.Resources(0, 0, 0.0, "none", 0)
        faults = (f"does not build: {str(error).strip().splitlines()[0][:120]}",)
    blocks = ", ".join(f"{name} {size}" for name, size in variant.tile.blocks.items())
    return CompiledTile(
        architecture=variant.architecture,
        kernel=variant.kernel,
        problem=variant.problem,
        tile=f"{blocks}, {variant.tile.num_warps} warps, {variant.tile.num_stages} stages",
        default=variant.default,
        registers=used.registers,
        stack_bytes=used.stack_bytes,
        shared_kib=used.shared_kib,
        shared_limit_kib=limit,
        mma=used.mma,
        faults=faults,
    )


def _faults(variant: _Variant, used: aot.Resources, shared_limit_kib: int) -> Iterator[str]:
    if used.shared_kib > shared_limit_kib:
        yield f"{used.shared_kib:.0f} KiB of shared memory, {shared_limit_kib} are there"
    if used.tensor_memory_columns > TENSOR_MEMORY_COLUMNS:
        yield f"{used.tensor_memory_columns} columns of tensor memory"
    if variant.default and used.stack_bytes:
        yield f"spills {used.stack_bytes} bytes a thread"
    on_matrix_units = variant.dtype != torch.float32 or variant.precision == "tf32"
    if variant.kernel in MATRIX_KERNELS and on_matrix_units and used.mma in ("fma", "none"):
        yield "no matrix instructions"


def _meta(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _attention_tensors(
    variant: _Variant,
) -> tuple[Tensor, list[Tensor], list[Tensor], list[Tensor], Tensor, Tensor]:
    n, d_qk, dtype = variant.tokens, variant.entry.max_d_qk, variant.dtype
    q = _meta(1, n, _HEADS, d_qk, dtype=dtype)
    vs = [_meta(1, n, _HEADS, d, dtype=dtype) for d in variant.d_vs]
    lse = _meta(1, _HEADS, n, dtype=torch.float32)
    weights = _meta(1, _HEADS, n, len(vs), dtype=torch.float32)
    return q, [q] * len(vs), vs, vs, lse, weights


def _plan_forward(target: Target, variant: _Variant) -> list[Launch]:
    q, ks, vs, outs, lse, weights = _attention_tensors(variant)
    return plan_forward(target, q, ks, vs, 0.125, outs, lse, weights)


def _plan_backward(target: Target, variant: _Variant) -> list[Launch]:
    q, ks, vs, outs, lse, weights = _attention_tensors(variant)
    return plan_backward(
        target, outs, lse, weights, q, ks, vs, outs, lse, weights, 0.125, q, ks, vs
    )


def _plan_gated_projection(target: Target, variant: _Variant) -> list[Launch]:
    channels = variant.d_vs[0]
    x = _meta(variant.tokens, channels, dtype=variant.dtype)
    weight = _meta(channels, channels, dtype=variant.dtype)
    gate = _meta(channels, dtype=torch.float32)
    return [plan_gated_projection(target, x, [x], weight, gate, gate, x)]


_PLANS: dict[str, Callable[[Target, _Variant], list[Launch]]] = {
    "attention_forward": _plan_forward,
    "combine_splits": _plan_forward,
    "delta": _plan_backward,
    "attention_backward_q": _plan_backward,
    "attention_backward_kv": _plan_backward,
    "attention_backward_k": _plan_backward,
    "gated_projection": _plan_gated_projection,
}


def _runs(kernel: Any, **constants: bool) -> Callable[[Launch], bool]:
    def selects(launch: Launch) -> bool:
        return launch.kernel is kernel and constants.items() <= launch.constants.items()

    return selects


_LAUNCHES: dict[str, Callable[[Launch], bool]] = {
    "attention_forward": _runs(_attention_forward_kernel),
    "combine_splits": _runs(_combine_splits_kernel),
    "delta": _runs(_delta_kernel),
    "attention_backward_q": _runs(_attention_backward_q_kernel),
    "attention_backward_kv": _runs(_attention_backward_kv_kernel, WRITE_DV=True),
    "attention_backward_k": _runs(_attention_backward_kv_kernel, WRITE_DV=False),
    "gated_projection": _runs(_gated_projection_kernel),
}
