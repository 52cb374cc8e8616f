"""Time candidate tiles on the GPU at hand and propose a tile file; nothing is changed by itself.

A candidate must build and stay within the error budget on a small odd problem before it is timed.
The proposal has the form of the files in ``tuned/``, the fastest tile of each entry first, with its
time beside it for the reviewer.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from itertools import product
from typing import Any

import torch

from hmc_fast.kernels.fused import operators
from hmc_fast.kernels.fused.tiles import (
    Tile,
    TileEntry,
    TileTable,
    architecture_of,
    load_tiles,
    use_tiles,
)
from hmc_fast.kernels.geometry import cross_attention_problem, self_attention_problem
from hmc_fast.kernels.problem import AttentionProblem
from hmc_fast.kernels.testing import parity

TILES_PROPOSED = 3
"""Tiles kept for each entry of a proposal."""
BLOCK_SIZES = {"BLOCK_M": (16, 32, 64, 128), "BLOCK_N": (32, 64, 128), "BLOCK_K": (32, 64)}
WARPS, STAGES = (4, 8), (1, 2, 3, 4)

Measure = Callable[[Callable[[], object]], float]
"""Milliseconds of a call, such as the median of ``triton.testing.do_bench``."""


TUNING_PROBLEMS = (
    self_attention_problem("c3", 1024, batch=8),
    self_attention_problem("c4", 1024, batch=8),
    self_attention_problem("c5", 224, batch=64),
    cross_attention_problem(1024, batch=8),
)
"""Problems to be fast on, which differ most."""


def propose_tiles(
    device: torch.device,
    measure: Measure,
    *,
    problems: Sequence[AttentionProblem] = TUNING_PROBLEMS,
    candidates: Callable[[Tile], Iterator[Tile]] | None = None,
    progress: Callable[[str, int, int], object] = lambda kernel, done, total: None,
) -> dict[str, list[dict[str, Any]]]:
    """A tile file for ``device`` as a JSON document, tuned on ``problems``.

    Entries that no problem uses stay as they are shipped.
    """
    shipped = load_tiles(architecture_of(device))
    document: dict[str, list[dict[str, Any]]] = {
        "value_columns": [{"bits": b, **asdict(c)} for b, c in shipped.value_columns.items()]
    }
    document |= {kernel: list(map(_entry_json, es)) for kernel, es in shipped.entries.items()}
    jobs = [(problem, kernel) for problem in problems for kernel in ("forward", "q", "kv")]
    for problem, part in jobs:
        kernel = "attention_forward" if part == "forward" else f"attention_backward_{part}"
        progress(f"{problem.name} {kernel}", 1, len(jobs))
        entries = shipped.entries[kernel]
        index = _entry_used(entries, problem, forward=part == "forward")
        tiles = list((candidates or _neighbours)(entries[index].tiles[0]))
        timed = _time_tiles(device, shipped, kernel, index, tiles, problem, measure)
        fastest = sorted(timed, key=timed.__getitem__)[:TILES_PROPOSED]
        if fastest:
            document[kernel][index] = _entry_json(
                replace(entries[index], tiles=tuple(fastest)), timed
            )
    return document


def _entry_used(entries: Sequence[TileEntry], problem: AttentionProblem, *, forward: bool) -> int:
    columns = (sum if forward else max)(problem.v_head_dims)
    bits = problem.dtype.itemsize * 8
    return next(
        i
        for i, entry in enumerate(entries)
        if entry.serves(bits, problem.qk_head_dim, columns, problem.queries)
    )


def _neighbours(default: Tile) -> Iterator[Tile]:
    yield default
    names = list(default.blocks)
    for *sizes, warps, stages in product(*(BLOCK_SIZES[name] for name in names), WARPS, STAGES):
        blocks = dict(zip(names, sizes, strict=True))
        tile = Tile(blocks, warps, stages, default.max_registers)
        if tile != default:
            yield tile


def _time_tiles(
    device: torch.device,
    shipped: TileTable,
    kernel: str,
    index: int,
    tiles: Sequence[Tile],
    problem: AttentionProblem,
    measure: Measure,
) -> dict[Tile, float]:
    q, ks, vs = replace(problem, device=device).tensors()
    outs, lse, weights = operators.multi_scale_attention(q, ks, vs, 0.125)

    def forward() -> object:
        return operators.multi_scale_attention(q, ks, vs, 0.125)

    def backward() -> object:
        return operators.multi_scale_attention_backward(
            outs, lse, weights, q, ks, vs, outs, lse, weights, 0.125
        )

    timed = {}
    for tile in tiles:
        entries = list(shipped.entries[kernel])
        entries[index] = replace(entries[index], tiles=(tile,))
        with use_tiles(shipped.instead(kernel, entries)):
            if _is_right(device, problem):
                timed[tile] = measure(forward if kernel == "attention_forward" else backward)
    return timed


def _is_right(device: torch.device, problem: AttentionProblem) -> bool:
    """Whether the tiles in use build and keep the error budget on a small problem of this kind."""
    small = replace(
        problem,
        batch=1,
        queries=min(problem.queries, 97),
        heads=1,
        tokens=tuple(min(n, 131) for n in problem.tokens),
        device=device,
    )
    try:
        return all(use.within for use in parity(*small.tensors(), backend="triton"))
    except Exception:
        # A tile that needs too much shared memory or does not compile is no candidate; Triton
        # raises many kinds of errors for it.
        return False


def _entry_json(entry: TileEntry, timed: Mapping[Tile, float] | None = None) -> dict[str, Any]:
    limits: dict[str, Any] = {
        "bits": entry.bits,
        "max_d_qk": entry.max_d_qk,
        "max_d_v": entry.max_d_v,
    }
    if entry.max_queries is not None:
        limits["max_queries"] = entry.max_queries
    tiles = [
        {**tile.blocks, "num_warps": tile.num_warps, "num_stages": tile.num_stages}
        | ({"max_registers": tile.max_registers} if tile.max_registers else {})
        | ({"milliseconds": round(timed[tile], 5)} if timed else {})
        for tile in entry.tiles
    ]
    return {**limits, "tiles": tiles}
