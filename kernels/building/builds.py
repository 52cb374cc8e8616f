"""What the cross-compile gate builds: every tile on representative problems, and the model's own.

Each tile is built on the variants that differ most: blocks that divide the tokens in fp16 (tf32 for
fp32), and ragged ones in bf16 (ieee). Beside them every launch that the model itself makes is built
with the tile that its planner takes.
"""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import chain
from typing import Protocol

import torch
from torch import Tensor

from hmc_fast.kernels.building import aot
from hmc_fast.kernels.fused.architectures import plan_for
from hmc_fast.kernels.fused.hopper_backward import KERNEL as SPECIALISED_BACKWARD_KV
from hmc_fast.kernels.fused.hopper_forward import KERNEL as SPECIALISED_FORWARD
from hmc_fast.kernels.fused.launch import Launch, Target
from hmc_fast.kernels.fused.tiles import Tile, TileEntry, load_tiles
from hmc_fast.kernels.geometry import model_problems
from hmc_fast.kernels.problem import AttentionProblem

MATRIX_KERNELS = (
    "attention_forward",
    SPECIALISED_FORWARD,
    SPECIALISED_BACKWARD_KV,
    "attention_backward_q",
    "attention_backward_kv",
    "attention_backward_k",
    "gated_projection",
)
_RAGGED_TOKENS, _WHOLE_TOKENS = 1000, 1024
_HEADS = 2
_FEW_MULTIPROCESSORS, _MANY_MULTIPROCESSORS = 1, 128
"""Without splits of the keys, and with them on the small problems of the gate."""


class Build(Protocol):
    """One kernel to be built for one architecture; small enough to be sent to another process."""

    @property
    def architecture(self) -> str: ...
    @property
    def kernel(self) -> str: ...
    @property
    def default(self) -> bool: ...
    @property
    def dtype(self) -> torch.dtype: ...
    @property
    def precision(self) -> str: ...
    @property
    def problem(self) -> str: ...
    def launch(self) -> Launch: ...


@dataclass(frozen=True)
class TileBuild:
    """One tile of one entry on one representative problem."""

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
        tiles = load_tiles(self.architecture).instead(self.kernel, [only])
        splits = self.kernel == "combine_splits"
        multiprocessors = _MANY_MULTIPROCESSORS if splits else _FEW_MULTIPROCESSORS
        target = Target(tiles, multiprocessors, self.precision)
        if self.kernel == "gated_projection":
            return _plan_projection(target, self.tokens, self.d_vs[0], self.dtype)
        tokens = (self.tokens,) * len(self.d_vs)
        shape = AttentionProblem(
            1, self.tokens, _HEADS, tokens, self.d_vs, self.entry.max_d_qk, self.dtype
        )
        return find_launch(target, shape, self.kernel)

    @property
    def problem(self) -> str:
        shape = f"d_qk {self.entry.max_d_qk}, d_v {'+'.join(map(str, self.d_vs))}"
        if self.kernel == "gated_projection":
            shape = f"{self.d_vs[0]} channels"
        return f"{_dtype_name(self.dtype, self.precision)}, {shape}, {self.tokens} tokens"


@dataclass(frozen=True)
class ModelBuild:
    """One launch of one attention call of the model, with the tile that its planner takes."""

    architecture: str
    kernel: str
    shape: AttentionProblem
    precision: str
    position: int = 0
    """Among the launches of this kernel, of which several sources may take one each."""
    default: bool = True

    @property
    def dtype(self) -> torch.dtype:
        return self.shape.dtype

    @property
    def problem(self) -> str:
        place = f", launch {self.position + 1}" if self.position else ""
        return f"{_dtype_name(self.dtype, self.precision)}, {self.shape.name}{place}"

    def launch(self) -> Launch:
        target = _model_target(self.architecture, self.precision)
        return find_launch(target, self.shape, self.kernel, self.position)


def builds_for(architecture: str) -> Iterator[Build]:
    """Everything that the gate builds for an architecture, nothing twice."""
    for kernel, entries in load_tiles(architecture).entries.items():
        for entry in entries:
            for tile in entry.tiles:
                yield from _tile_builds(architecture, kernel, entry, tile)
    yield from _model_builds(architecture)


def kernel_of(launch: Launch) -> str:
    """The name under which a tile file lists the kernel of ``launch``."""
    if launch.name == "attention_backward_kv" and not launch.constants["WRITE_DV"]:
        return "attention_backward_k"
    return launch.name


def _tile_builds(
    architecture: str, kernel: str, entry: TileEntry, tile: Tile
) -> Iterator[TileBuild]:
    if entry.bits == 16:
        kinds = [(torch.bfloat16, "ieee", _RAGGED_TOKENS), (torch.float16, "ieee", _WHOLE_TOKENS)]
    else:
        kinds = [(torch.float32, "ieee", _RAGGED_TOKENS), (torch.float32, "tf32", _WHOLE_TOKENS)]
    for dtype, precision, tokens in kinds:
        tokens = min(tokens, (entry.max_queries or tokens) - (tokens % 16 != 0))
        for d_vs in _value_head_dims(architecture, kernel, entry):
            default = tile is entry.tiles[0]
            yield TileBuild(
                architecture, kernel, entry, tile, default, dtype, precision, tokens, d_vs
            )


def _model_builds(architecture: str) -> Iterator[ModelBuild]:
    built = set()
    for shape in model_problems():
        for dtype, precision in ((torch.bfloat16, "ieee"), (torch.float32, "ieee")):
            typed = replace(shape, dtype=dtype)
            planned = plan_passes(_model_target(architecture, precision), typed)
            launched: Counter[str] = Counter()
            for launch in chain(*planned):
                kernel = kernel_of(launch)
                options = (launch.num_warps, launch.num_stages, launch.max_registers)
                code = repr((kernel, options, aot.specialise(launch)))
                if code not in built:
                    built.add(code)
                    yield ModelBuild(architecture, kernel, typed, precision, launched[kernel])
                launched[kernel] += 1


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


def plan_passes(target: Target, shape: AttentionProblem) -> tuple[list[Launch], list[Launch]]:
    """The launches of a forward and of a backward pass, on tensors without memory."""
    q, ks, vs = replace(shape, device=torch.device("meta")).tensors()
    batch, queries, heads, _ = q.shape
    outs = [q.new_empty(batch, queries, heads, v.shape[3]) for v in vs]
    lse = q.new_empty(batch, heads, queries, dtype=torch.float32)
    weights = q.new_empty(batch, heads, queries, len(vs), dtype=torch.float32)
    results, inputs = (outs, lse, weights), (q, ks, vs)
    forward = plan_for("attention_forward", target.architecture)
    backward = plan_for("attention_backward", target.architecture)
    return (
        forward(target, *inputs, shape.scale, *results),
        backward(target, *results, *inputs, *results, shape.scale, *inputs),
    )


def find_launch(target: Target, shape: AttentionProblem, kernel: str, position: int = 0) -> Launch:
    """The first launch of both passes whose kernel has this name, or that at ``position``."""
    planned = chain(*plan_passes(target, shape))
    found = [launch for launch in planned if kernel_of(launch) == kernel]
    return found[position]


def _model_target(architecture: str, precision: str) -> Target:
    return Target(load_tiles(architecture), _MANY_MULTIPROCESSORS, precision)


def _plan_projection(target: Target, rows: int, channels: int, dtype: torch.dtype) -> Launch:
    def meta(*shape: int, of: torch.dtype = dtype) -> Tensor:
        return torch.empty(shape, dtype=of, device="meta")

    x, gate = meta(rows, channels), meta(channels, of=torch.float32)
    plan = plan_for("gated_projection", target.architecture)
    (launch,) = plan(target, x, [x], meta(channels, channels), gate, gate, x)
    return launch


def _dtype_name(dtype: torch.dtype, precision: str) -> str:
    name = str(dtype).removeprefix("torch.").replace("float", "fp").replace("bfp", "bf")
    return f"{name} {precision}" if dtype == torch.float32 else name
