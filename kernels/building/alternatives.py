"""What can be told of other tiles without a GPU.

Run as ``python -m hmc_fast.kernels.building.alternatives OUT.md [ARCHITECTURE]``.

Compiles the attention launches of HMC-Net's largest cases with every tile of a grid and reads the
schedule of each kernel's hottest loop from its machine code. Times are not among it.
"""

import sys
from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from pathlib import Path

import triton

from hmc_fast.kernels.building import aot
from hmc_fast.kernels.building.builds import find_launch
from hmc_fast.kernels.building.schedules import schedule_of
from hmc_fast.kernels.fused.launch import Launch, Target
from hmc_fast.kernels.fused.tiles import Tile, TileEntry, load_tiles
from hmc_fast.kernels.geometry import cross_attention_problem, self_attention_problem
from hmc_fast.kernels.problem import AttentionProblem

PROBLEMS = (self_attention_problem("c3", 1024, 8), cross_attention_problem(1024, 8))
KERNELS = ("attention_forward", "attention_backward_q", "attention_backward_kv")
GRID = {
    "attention_forward": ((64, 128), (32, 64, 128), (4, 8), (2, 3)),
    "attention_backward_q": ((64, 128), (32, 64), (4, 8), (2, 3)),
    "attention_backward_kv": ((16, 32, 64), (64, 128), (4, 8), (2, 3)),
}
"""BLOCK_M, BLOCK_N, warps, stages."""
HEADER = (
    "tile", "registers", "spilled bytes", "shared KiB", "loop: products, instructions",
    "loop: in flight, barriers", "instructions per 1000 products of a warp", "predicted",
)  # fmt: skip


def launches(
    architecture: str, problem: AttentionProblem, kernel: str
) -> Iterator[tuple[str, Launch]]:
    """The kernel's launch with the shipped tile, then with every tile of the grid."""
    shipped = load_tiles(architecture)
    target = Target(shipped, 132, "ieee")
    default = replace(target, tiles=shipped.instead(kernel, shipped.entries[kernel]))
    yield "shipped: ", find_launch(default, problem, kernel)
    for m, n, warps, stages in product(*GRID[kernel]):
        only = TileEntry(16, 256, 512, None, (Tile({"BLOCK_M": m, "BLOCK_N": n}, warps, stages),))
        tiles = shipped.instead(kernel, [only])
        yield "", find_launch(replace(target, tiles=tiles), problem, kernel)


def row(architecture: str, label: str, launch: Launch) -> list[str]:
    """One line of the table; the reason where the tile cannot be built."""
    try:
        compiled = aot.compile_for(launch, architecture)
        used = aot.resources(compiled)
    except Exception as error:  # Triton raises many kinds of errors for what it cannot build
        return [label + launch.tile, str(error).strip().splitlines()[0][:60], *[""] * 6]
    schedule = schedule_of(launch, compiled, used)
    assert schedule is not None
    counts, waits, predicted = schedule.cells()
    return [
        label + launch.tile,
        str(used.registers),
        str(used.stack_bytes),
        f"{used.shared_kib:.0f}",
        counts,
        waits,
        f"{schedule.instructions_per_1000_products:.2f}",
        predicted,
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
            lines.append("| " + " | ".join(row(architecture, label, launch)) + " |")
            print(lines[-1], flush=True)
    Path(sys.argv[1]).write_text("\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
