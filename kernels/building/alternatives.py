"""What can be told of other tiles without a GPU.

Run as ``python -m hmc_fast.kernels.building.alternatives OUT.md [ARCHITECTURE]``.

Compiles the attention launches of HMC-Net's largest cases with every tile of a grid and reads the
machine code of each kernel's hottest loop: matrix instructions, exponentials, all instructions, for
one step over a block of keys (or queries) by one warp. Times are not among it.
"""

import re
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import triton

from hmc_fast.kernels.building import aot
from hmc_fast.kernels.building.builds import find_launch, kernel_of
from hmc_fast.kernels.fused.launch import Launch, Target
from hmc_fast.kernels.fused.tiles import Tile, TileEntry, load_tiles
from hmc_fast.kernels.geometry import cross_attention_problem, self_attention_problem
from hmc_fast.kernels.problem import AttentionProblem

PROBLEMS = (self_attention_problem("c3", 1024, 8), cross_attention_problem(1024, 8))
KERNELS = ("attention_forward", "attention_backward_q", "attention_backward_kv")
GRID = {
    "attention_forward": ((64, 128), (32, 64, 128), (4, 8), (2, 3)),
    "attention_backward_q": ((64, 128), (32, 64), (4, 8), (1, 2)),
    "attention_backward_kv": ((32, 64), (64, 128), (4, 8), (1, 2)),
}
"""BLOCK_M, BLOCK_N, warps, stages."""
PRODUCTS = {
    "attention_forward": (1, 1),
    "attention_backward_q": (2, 1),
    "attention_backward_kv": (2, 2),
}
"""Matrix products over the head dim of q and k, and over that of v, for a pair of tokens."""
MATRIX = re.compile(r"\b(HGMMA|HMMA|UTCHMMA|QGMMA)\b")
EXPONENTIAL = re.compile(r"\bMUFU\.EX2\b")
HEADER = (
    "tile", "registers", "spilled bytes", "shared KiB", "loop: matrix instructions",
    "loop: exponentials", "loop: instructions", "instructions per 1000 products of a warp",
)  # fmt: skip


@dataclass(frozen=True)
class Loop:
    """Instructions of one pass through a loop's body, by kind."""

    matrix: int
    exponentials: int
    instructions: int


def hottest_loop(sass: str) -> Loop:
    """The innermost loop with the most matrix instructions, by backward branches."""
    code = {
        int(address, 16): text
        for address, text in re.findall(r"^\s+/\*([0-9a-f]{4,})\*/\s+(.*?)\s*[;&]", sass, re.M)
    }
    ranges = []
    for address, text in code.items():
        target = re.search(r"\bBRA\b.*?0x([0-9a-f]+)", text)
        if target and int(target[1], 16) < address:
            ranges.append((int(target[1], 16), address))
    loops = []
    for start, end in ranges:
        if any(start <= s and e <= end and (s, e) != (start, end) for s, e in ranges):
            continue  # not innermost
        body = [text for address, text in code.items() if start <= address <= end]
        matrix, exponentials = (
            sum(bool(p.search(text)) for text in body) for p in (MATRIX, EXPONENTIAL)
        )
        loops.append(Loop(matrix, exponentials, len(body)))
    return max(loops, key=lambda loop: loop.matrix, default=Loop(0, 0, 0))


def launches(
    architecture: str, problem: AttentionProblem, kernel: str
) -> Iterator[tuple[str, Launch]]:
    """The kernel's launch with the shipped tile, then with every tile of the grid."""
    shipped = load_tiles(architecture)
    target = Target(shipped, 132, "ieee")
    yield "shipped: ", find_launch(target, problem, kernel)
    for m, n, warps, stages in product(*GRID[kernel]):
        only = TileEntry(16, 256, 512, None, (Tile({"BLOCK_M": m, "BLOCK_N": n}, warps, stages),))
        tiles = replace(shipped, entries={**shipped.entries, kernel: [only]})
        yield "", find_launch(replace(target, tiles=tiles), problem, kernel)


def row(architecture: str, label: str, launch: Launch, problem: AttentionProblem) -> list[str]:
    """One line of the table; the reason where the tile cannot be built."""
    try:
        compiled = aot.compile_for(launch, architecture)
        used = aot.resources(compiled)
    except Exception as error:  # Triton raises many kinds of errors for what it cannot build
        return [label + launch.tile, str(error).strip().splitlines()[0][:60], *[""] * 6]
    loop = hottest_loop(aot.cuobjdump("--dump-sass", compiled.asm["cubin"]))
    pairs = launch.constants["BLOCK_M"] * launch.constants["BLOCK_N"]
    qk, v = PRODUCTS[kernel_of(launch)]
    width = qk * problem.qk_head_dim + v * max(problem.v_head_dims)
    per_warp = pairs * width / launch.num_warps / 1000
    return [
        label + launch.tile,
        str(used.registers),
        str(used.stack_bytes),
        f"{used.shared_kib:.0f}",
        str(loop.matrix),
        str(loop.exponentials),
        str(loop.instructions),
        f"{loop.instructions / per_warp:.2f}",
    ]


def main() -> None:
    architecture = sys.argv[2] if len(sys.argv) > 2 else "sm_90"
    lines = [
        f"# Tiles for {architecture}, bf16, Triton {triton.__version__}",
        "",
        "Read from machine code, not timed. Fewer instructions per product leave more of the issue "
        "slots to the matrix units; a spill costs local memory traffic. Made by "
        "`python -m hmc_fast.kernels.building.alternatives OUT.md`.",
    ]
    for problem, kernel in product(PROBLEMS, KERNELS):
        lines += ["", f"## {kernel}, {problem.name}", "", "| " + " | ".join(HEADER) + " |"]
        lines.append("|" + "---|" * len(HEADER))
        for label, launch in launches(architecture, problem, kernel):
            lines.append("| " + " | ".join(row(architecture, label, launch, problem)) + " |")
            print(lines[-1], flush=True)
    Path(sys.argv[1]).write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
