"""What the commands measure by default on a CPU and on a GPU."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from hmc_fast.bench.cases import Kind, parse_case
from hmc_fast.bench.jobs.targets import TARGET_CASES, TARGET_MODEL_CASES
from hmc_fast.bench.run import Plan
from hmc_fast.errors import UserError

OPERATOR_CASES: dict[str, tuple[str, ...]] = {
    "cpu": (
        "hsa_c4@224x1",
        "msca_c5@224x1",
        "hsa_c3@224x1",
        "hsa_block_c5@224x1",
    ),
    "gpu": (
        "hsa_c3@1024x8",
        "hsa_block_c3@1024x8",
        "msca_c5@1024x8",
        "hsa_c4@1024x8",
        "hsa_c5@1024x8",
        "hsa_c3@224x1",
        "hsa_c4@224x1",
        "hsa_c5@224x1",
        "msca_c5@224x1",
        "hsa_c4@512x16",
        "hsa_c3@224x64",
        "msca_c5@224x64",
    ),
}


def _both(*cases: str) -> tuple[str, ...]:
    return tuple(f"{model}@{case}" for case in cases for model in ("hmc_net", "resnet50"))


MODEL_CASES: dict[str, tuple[str, ...]] = {
    "cpu": _both("96x1", "160x1", "224x1", "96x4", "96x2/training"),
    "gpu": _both("1024x8", "224x1", "512x16/training", "224x64", "1024x1", "224x8", "512x8"),
}
"""Most important first: where a time budget runs out, the last ones are left."""

KINDS: dict[str, tuple[Kind, ...]] = {
    "kernels": ("operator", "block"),
    "model": ("model",),
    "targets": ("operator", "block", "model"),
}
"""Kinds of cases that each command times."""


@dataclass(frozen=True)
class Preset:
    """Cases most important first, and when to stop."""

    operators: tuple[str, ...]
    models: tuple[str, ...]
    precision: str
    seconds: float
    minutes: float
    needs_gpu: bool = True


PRESETS = {
    "cpu": Preset(OPERATOR_CASES["cpu"], MODEL_CASES["cpu"], "fp32", 0.5, 2.5, needs_gpu=False),
    "gpu": Preset(OPERATOR_CASES["gpu"], MODEL_CASES["gpu"], "bf16", 2.0, 9.0),
    "targets": Preset(TARGET_CASES, TARGET_MODEL_CASES, "bf16", 2.0, 9.0),
}


def make_plan(
    job: str,
    preset: str | None = None,
    *,
    cases: Sequence[str] | None = None,
    precisions: Sequence[str] | None = None,
    peers: Sequence[str] | None = None,
    graphs: bool = True,
    seconds: float | None = None,
    minutes: float | None = None,
    list_only: bool = False,
) -> Plan:
    """The plan of a command of :data:`KINDS`; what is None comes from the preset.

    Raises :class:`UserError` for unknown names, and for a preset that needs a GPU where there is
    none, unless the plan is only listed.
    """
    has_gpu = torch.cuda.is_available()
    name = preset or ("gpu" if has_gpu else "cpu")
    if name not in PRESETS:
        raise UserError(f"unknown preset {name!r}; choose one of {', '.join(PRESETS)}")
    chosen = PRESETS[name]
    if chosen.needs_gpu and not has_gpu and not list_only:
        raise UserError(
            f"the cases of {name} need an NVIDIA GPU and would take hours without: use --list to "
            "see them, or --preset cpu"
        )
    usual = chosen.operators if "operator" in KINDS[job] else ()
    usual += chosen.models if "model" in KINDS[job] else ()
    return Plan(
        job,
        tuple(parse_case(case, KINDS[job]) for case in cases or usual),
        tuple(precisions or [chosen.precision]),
        None if peers is None else tuple(peers),
        graphs,
        chosen.seconds if seconds is None else seconds,
        chosen.minutes if minutes is None else minutes,
    )
