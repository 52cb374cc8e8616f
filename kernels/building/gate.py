"""The cross-compile gate: every shipped tile, built for its architecture without a GPU.

A tile passes if its kernel builds, fits the architecture's shared (and tensor) memory and computes
its products on the matrix units; a default tile must not spill registers either. On Hopper the
model's launches must also keep products and loads in flight, as far as machine code tells. What is
predicted of them is a prediction: see :mod:`hmc_fast.kernels.building.pipes`.
"""

import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from dataclasses import asdict, dataclass
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import torch
import triton

from hmc_fast.errors import UserError
from hmc_fast.kernels.building import aot
from hmc_fast.kernels.building.builds import MATRIX_KERNELS, Build, ModelBuild, builds_for
from hmc_fast.kernels.building.schedules import Schedule, schedule_of
from hmc_fast.kernels.fused.tiles import SHARED_MEMORY_KIB

ARCHITECTURES = tuple(SHARED_MEMORY_KIB)
TENSOR_MEMORY_COLUMNS = 512
"""Columns of a Blackwell data-centre multiprocessor's tensor memory (PTX ISA, tcgen05)."""
TITLE = "# Compiled tiles, Triton"
HEADER = (
    "kernel",
    "problem",
    "tile",
    "default",
    "registers",
    "spilled bytes",
    "shared KiB",
    "products by",
    "loop: products, instructions",
    "loop: in flight, barriers",
    "predicted",
    "verdict",
)


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
    schedule: Schedule | None
    faults: tuple[str, ...]

    def to_json(self) -> dict[str, Any]:
        document = {**asdict(self), "faults": list(self.faults)}
        if self.schedule and self.schedule.prediction:
            document["schedule"]["prediction"]["share"] = self.schedule.prediction.share
        return document

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
            *(self.schedule.cells() if self.schedule else ("", "", "")),
            "; ".join(self.faults) or "passes",
        ]


def check_tiles(
    architectures: Sequence[str] = ARCHITECTURES,
    kernels: Sequence[str] = (),
    *,
    defaults_only: bool = False,
    progress: Callable[[str, int, int], object] = lambda kernel, done, total: None,
) -> list[CompiledTile]:
    """Build every shipped tile of ``architectures``; with ``kernels``, those of these alone.

    Needs triton and its ``cuobjdump``, but no GPU. Raises :class:`~hmc_fast.errors.UserError` for
    an architecture or a kernel that has no tiles.
    """
    for name in architectures:
        if name not in ARCHITECTURES:
            raise UserError(f"unknown architecture {name!r}; use one of {', '.join(ARCHITECTURES)}")
    builds = [build for architecture in architectures for build in builds_for(architecture)]
    known = dict.fromkeys(build.kernel for build in builds)
    for name in kernels:
        if name not in known:
            raise UserError(f"no kernel {name!r} there; use one of {', '.join(known)}")
    chosen = [
        build
        for build in builds
        if build.kernel in (kernels or known) and (build.default or not defaults_only)
    ]
    return check_builds(chosen, progress=progress)


def check_builds(
    builds: Sequence[Build],
    *,
    progress: Callable[[str, int, int], object] = lambda kernel, done, total: None,
) -> list[CompiledTile]:
    """Compile ``builds`` in as many processes as there are cores.

    Raises :class:`~hmc_fast.errors.UserError` where one of these processes is killed.
    """
    compiled = []
    with ProcessPoolExecutor(os.cpu_count(), mp_context=get_context("spawn")) as pool:
        try:
            for tile in pool.map(compile_build, builds):
                compiled.append(tile)
                progress(f"{tile.architecture} {tile.kernel}", 1, len(builds))
        except BrokenProcessPool:
            raise UserError(
                f"a process that compiles kernels was killed after {len(compiled)} of "
                f"{len(builds)} builds, as when memory runs out; free some, then run it again"
            ) from None
    return compiled


def compile_build(build: Build) -> CompiledTile:
    """Compile one build; a compiler's error becomes a fault of the row."""
    launch = build.launch()
    limit = SHARED_MEMORY_KIB[build.architecture]
    schedule = None
    try:
        compiled = aot.compile_for(launch, build.architecture)
        used = aot.resources(compiled)
        schedule = schedule_of(launch, compiled, used)
        faults = (*_faults(build, used, limit), *_schedule_faults(build, schedule))
    except Exception as error:
        # Triton raises many kinds of errors for a tile that cannot be built: all are findings.
        used = aot.Resources(0, 0, 0.0, "none", 0)
        faults = (f"does not build: {str(error).strip().splitlines()[0][:120]}",)
    return CompiledTile(
        architecture=build.architecture,
        kernel=build.kernel,
        problem=build.problem,
        tile=launch.tile,
        default=build.default,
        registers=used.registers,
        stack_bytes=used.stack_bytes,
        shared_kib=used.shared_kib,
        shared_limit_kib=limit,
        mma=used.mma,
        schedule=schedule,
        faults=faults,
    )


def is_table(path: Path) -> bool:
    """Whether a file is one of :func:`as_markdown`'s, so that another may take its place."""
    try:
        return path.read_bytes().startswith(TITLE.encode())
    except OSError:
        return False


def as_markdown(tiles: Sequence[CompiledTile]) -> str:
    """A table for each architecture, headed by the release of Triton that built them."""
    failing = sum(bool(tile.faults) for tile in tiles)
    lines = [
        f"{TITLE} {triton.__version__}",
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


def _faults(build: Build, used: aot.Resources, shared_limit_kib: int) -> Iterator[str]:
    if used.shared_kib > shared_limit_kib:
        yield f"{used.shared_kib:.0f} KiB of shared memory, {shared_limit_kib} are there"
    if used.tensor_memory_columns > TENSOR_MEMORY_COLUMNS:
        yield f"{used.tensor_memory_columns} columns of tensor memory"
    if build.default and used.stack_bytes:
        yield f"spills {used.stack_bytes} bytes a thread"
    on_matrix_units = build.dtype != torch.float32 or build.precision == "tf32"
    if build.kernel in MATRIX_KERNELS and on_matrix_units and used.mma in ("fma", "none"):
        yield "no matrix instructions"


def _schedule_faults(build: Build, schedule: Schedule | None) -> Iterator[str]:
    """What a launch of the model may not do on Hopper, in 16 bits."""
    if schedule is None or schedule.prediction is None or not isinstance(build, ModelBuild):
        return
    if schedule.serialised:
        yield f"{schedule.serialised} waits between two steps of one product"
    if schedule.spills:
        yield f"{schedule.spills} spills in the loop"
    if not schedule.loads_in_flight:
        yield "a wait leaves no load in flight"
    if schedule.specialised and schedule.block_barriers:
        yield f"{schedule.block_barriers} barriers of the whole block in a specialised loop"
