"""One profiling run: measures, and keeps the record on disk up to date after every case."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import torch

from hmc_fast.bench.ceilings import measure_ceiling
from hmc_fast.bench.device import clocks_seen, device_facts
from hmc_fast.bench.kernel_bench import KernelBenchOptions, run_kernel_bench
from hmc_fast.bench.model_bench import ModelBenchOptions, run_model_bench
from hmc_fast.bench.profile_record import Measurement, ProfileRecord, write_profile
from hmc_fast.bench.resources import resources_of
from hmc_fast.bench.timing import clock_for
from hmc_fast.devices import default_device, precision_dtype
from hmc_fast.environment import environment
from hmc_fast.files import make_folder

RECORD_FILE = "record.jsonl"


@dataclass(frozen=True)
class ProfilePlan:
    """What a run measures; ``minutes`` is when it stops, whatever is left."""

    kernels: KernelBenchOptions | None = None
    models: ModelBenchOptions | None = None
    minutes: float = 30.0

    def to_json(self) -> dict[str, Any]:
        return {
            "kernels": self.kernels and self.kernels.to_json(),
            "models": self.models and self.models.to_json(),
            "minutes": self.minutes,
        }

    def lines(self) -> list[tuple[str, str, str]]:
        """Every case with its passes and its peers, without measuring anything."""
        planned = []
        if self.kernels is not None:
            peers = ", ".join(self.kernels.peers)
            passes = ", ".join(self.kernels.passes)
            planned = [(f"{c.name} {p}", passes, peers) for c, p in self.kernels.plan()]
        if self.models is not None:
            implementations = ", ".join(self.models.implementations)
            for case in self.models.cases:
                name = f"{case.name} {self.models.precision}"
                planned.append((name, case.what, implementations))
        return planned


def run_profile(
    plan: ProfilePlan,
    folder: Path,
    *,
    on_stage: Callable[[str], object] = lambda stage: None,
    on_case: Callable[[str, int, int], object] = lambda what, done, total: None,
) -> ProfileRecord:
    """Measure ``plan`` into ``folder/record.jsonl``, which is whole after every case.

    Raises :class:`hmc_fast.errors.UserError` where the folder cannot be written.
    """
    deadline_s = time.perf_counter() + 60 * plan.minutes
    path = make_folder(folder) / RECORD_FILE
    device = default_device()
    clock = clock_for(device)
    record = ProfileRecord(
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        environment=environment(),
        device={**device_facts(device).to_json(), "clocks_before": clocks_seen(device)},
        options=plan.to_json(),
    )
    total = len(plan.lines())

    def keep(rows: Sequence[Measurement]) -> None:
        nonlocal record
        record = replace(record, measurements=[*record.measurements, *rows])
        write_profile(path, record)
        on_case(rows[0].case if rows else "", 1, total)

    if plan.kernels is not None:
        for precision in plan.kernels.precisions:
            on_stage(f"ceilings of {precision}: a large matrix product, a large copy")
            ceiling = measure_ceiling(precision, precision_dtype(precision), device, clock)
            record = replace(record, ceilings=[*record.ceilings, ceiling])
        for rows in run_kernel_bench(
            plan.kernels,
            {ceiling.precision: ceiling for ceiling in record.ceilings},
            device,
            clock,
            deadline_s=deadline_s,
            on_stage=on_stage,
        ):
            keep(rows)
    if plan.models is not None:
        for rows in run_model_bench(
            plan.models, device, clock, deadline_s=deadline_s, on_stage=on_stage
        ):
            keep(rows)
    if plan.kernels is not None and "triton" in plan.kernels.peers:
        on_stage("registers, shared memory and spills of our kernels")
        record = replace(record, resources=resources_of(plan.kernels, device))
    after: dict[str, Any] = {"clocks_after": clocks_seen(device)}
    if device.type == "cuda":
        after["peak_allocated_mib"] = torch.cuda.max_memory_allocated(device) / 2**20
    record = replace(record, device={**record.device, **after})
    write_profile(path, record)
    return record
