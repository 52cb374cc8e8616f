"""Registers, shared memory and spills of our kernels in a case, by cross-compiling its launches."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch

from hmc_fast.bench.cases import Case
from hmc_fast.bench.failures import describe
from hmc_fast.devices import precision_dtype
from hmc_fast.schema import STRICT

if TYPE_CHECKING:
    from hmc_fast.kernels.fused.launch import Launch, Target

DEFAULT_ARCHITECTURE = "sm_90"
"""Compiled for where there is no GPU."""
DEFAULT_MULTIPROCESSORS = 132


@dataclass(frozen=True)
class KernelResources:
    """What a compiled kernel of a case takes: per thread, and shared memory per block.

    ``stack_bytes`` above zero are spilled registers. Where it did not compile, ``fault`` says why.
    """

    __pydantic_config__ = STRICT
    case: str
    precision: str
    task: str
    kernel: str
    architecture: str
    tile: str
    registers: int
    stack_bytes: int
    shared_kib: float
    mma: str
    fault: str | None = None


def resources_of(
    cases: Sequence[Case], precisions: Sequence[str], device: torch.device
) -> list[KernelResources]:
    """A row for every kernel that the cases launch; what does not compile is a row with a fault."""
    rows = []
    seen = set()
    for case in cases:
        for row in (r for p in precisions for r in _case_resources(case, p, device)):
            # Cases of different batch share their kernels.
            of = row.case.split("x")[0] if row.fault is None else row.fault
            key = (of, row.task, row.kernel, row.tile, row.precision)
            if key not in seen:
                seen.add(key)
                rows.append(row)
    return rows


def _case_resources(case: Case, precision: str, device: torch.device) -> Iterator[KernelResources]:
    architecture = DEFAULT_ARCHITECTURE
    try:
        # Triton is imported here: everything else about a record can be read without it.
        from hmc_fast.kernels.building import aot
        from hmc_fast.kernels.fused.launch import Target
        from hmc_fast.kernels.fused.tiles import architecture_of, load_tiles

        multiprocessors = DEFAULT_MULTIPROCESSORS
        if device.type == "cuda":
            architecture = architecture_of(device)
            multiprocessors = torch.cuda.get_device_properties(device).multi_processor_count
        launches = _launches(
            case, precision, Target(load_tiles(architecture), multiprocessors, "ieee")
        )
    except Exception as error:  # no triton, no tiles for the architecture, or none for the case
        yield _fault(case, precision, "all", architecture, describe(error))
        return
    for task, launch in launches:
        name = launch.name
        try:
            used = aot.resources(aot.compile_for(launch, architecture))
        except Exception as error:  # Triton raises many kinds of errors for what it cannot build
            yield _fault(case, precision, name, architecture, describe(error))
            continue
        yield KernelResources(
            case.name,
            precision,
            task,
            name,
            architecture,
            launch.tile,
            used.registers,
            used.stack_bytes,
            used.shared_kib,
            used.mma,
        )


def _fault(
    case: Case, precision: str, kernel: str, architecture: str, fault: str
) -> KernelResources:
    return KernelResources(
        case.name, precision, "", kernel, architecture, "", 0, 0, 0.0, "none", fault
    )


def _launches(case: Case, precision: str, target: "Target") -> list[tuple[str, "Launch"]]:
    from hmc_fast.kernels.building.builds import plan_passes

    problem = replace(case.attention, dtype=precision_dtype(precision))
    forward, backward = plan_passes(target, problem)
    return [("forward", x) for x in forward] + [("backward", x) for x in backward]
