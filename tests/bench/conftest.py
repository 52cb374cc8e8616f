"""Records as data, for task reads them."""

from dataclasses import replace

import pytest

from hmc_fast.bench.measuring.ceilings import Ceiling
from hmc_fast.bench.measuring.resources import KernelResources
from hmc_fast.bench.record import Measurement, Record


def measured(
    case: str, peer: str, task: str, p50_ms: float, *, launch: str = "stream", **fields: object
) -> Measurement:
    """A row with a spread of ±2 %."""
    row = Measurement(case, peer, "bf16", task, "graph" if launch == "graph" else "stream", "ok")
    values = {
        "samples": 10,
        "p20_ms": 0.98 * p50_ms,
        "p50_ms": p50_ms,
        "p80_ms": 1.02 * p50_ms,
        "min_ms": 0.97 * p50_ms,
        "max_ms": 1.5 * p50_ms,
        "outliers": 1,
        "budget_units": 0.5,
        "budget_tensor": "outs[0]",
        **fields,
    }
    return replace(row, **values)  # type: ignore[arg-type]  # fields by name


def operator_rows(task: str, times: dict[str, float]) -> list[Measurement]:
    work = {"flops": 2 * 10**12, "bytes": 10**9, "floor_ms": 2.5, "bound": "compute"}
    return [
        measured(
            "hsa_c3@1024x8",
            peer,
            task,
            ms,
            tflops=2e12 / ms / 1e9,
            ceiling_share=2.5 / ms,
            peak_mib=100.0,
            variant="one call",
            **work,
        )
        for peer, ms in times.items()
    ]


@pytest.fixture
def record() -> Record:
    """A GPU record in which some targets are met, one is missed and some are not measured."""
    forward = {"triton": 4.0, "sdpa_flash": 8.8, "flex": 9.0, "compiled": 40.0, "eager": 80.0}
    backward = {"triton": 12.0, "sdpa_flash": 14.0, "eager": 200.0}
    both = {"triton": 16.0, "sdpa_flash": 22.8}
    rows = [
        *operator_rows("forward", forward),
        *operator_rows("backward", backward),
        *operator_rows("both", both),
        Measurement(
            "hsa_c3@1024x8",
            "sdpa_math",
            "bf16",
            "forward",
            "stream",
            "error",
            "out of memory: tried to allocate 32 GiB",
        ),
        measured("hmc_net@1024x8", "triton", "inference", 40.0, peak_mib=1100.0),
        measured("hmc_net@1024x8", "eager", "inference", 100.0, peak_mib=4000.0),
        measured("hmc_net@224x1", "eager", "inference", 9.0, peak_mib=400.0),
        measured("hmc_net@224x8", "eager", "inference", 12.0, peak_mib=500.0),
        measured("hmc_net@1024x1", "eager", "inference", 30.0, peak_mib=900.0),
        measured("resnet50@1024x8", "eager", "inference", 25.0, peak_mib=1000.0),
        measured("hmc_net@224x1", "triton", "inference", 1.5, launch="graph"),
        measured("resnet50@224x1", "eager", "inference", 1.0, launch="graph"),
    ]
    return Record(
        job="targets",
        created="2026-01-01T00:00:00+00:00",
        environment={
            "packages": {"torch": "2.11.0", "triton": "3.6.0"},
            "python": "3.12.1",
            "git_revision": "abc",
            "command": "hmc-fast bench targets",
            "cpu_threads": 8,
        },
        device={
            "name": "NVIDIA H200",
            "kind": "cuda",
            "architecture": "sm_90",
            "clocks_before": {"sm_clock_mhz": 1980.0},
            "clocks_after": {"sm_clock_mhz": 1755.0},
        },
        options={},
        ceilings=[Ceiling("bf16", 8192, 800.0, 2**31, 4000.0)],
        measurements=rows,
        resources=[
            KernelResources(
                "hsa_c3@1024x8",
                "bf16",
                "forward",
                "attention_forward",
                "sm_90",
                "128×64, 8 warps, 2 stages",
                244,
                0,
                96.0,
                "wgmma",
            )
        ],
    )
