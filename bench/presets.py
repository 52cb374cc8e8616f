"""What the profiling commands measure by default on a CPU and on a GPU."""

from dataclasses import dataclass

from hmc_fast.bench.cases import CASE_PRESETS
from hmc_fast.bench.kernel_bench import PEER_NAMES
from hmc_fast.bench.model_cases import MODEL_PRESETS
from hmc_fast.bench.model_variants import IMPLEMENTATION_NAMES
from hmc_fast.bench.targets import TARGET_CASES, TARGET_MODEL_CASES
from hmc_fast.errors import UserError


@dataclass(frozen=True)
class ProfilePreset:
    """Cases most important first, and when to stop."""

    cases: tuple[str, ...]
    model_cases: tuple[str, ...]
    precision: str
    peers: tuple[str, ...]
    implementations: tuple[str, ...]
    seconds: float
    minutes: float
    needs_gpu: bool = True


PROFILE_PRESETS = {
    "cpu": ProfilePreset(
        cases=CASE_PRESETS["cpu"],
        model_cases=MODEL_PRESETS["cpu"],
        precision="fp32",
        peers=tuple(name for name in PEER_NAMES if name != "flex"),
        # Compiling a model for every size and batch takes minutes, and FlexAttention long on a
        # CPU: name them to have them.
        implementations=("triton", "eager", "onnxruntime"),
        seconds=0.5,
        minutes=2.5,
        needs_gpu=False,
    ),
    "gpu": ProfilePreset(
        cases=CASE_PRESETS["gpu"],
        model_cases=MODEL_PRESETS["gpu"],
        precision="bf16",
        peers=PEER_NAMES,
        implementations=IMPLEMENTATION_NAMES,
        seconds=2.0,
        minutes=9.0,
    ),
    "targets": ProfilePreset(
        cases=TARGET_CASES,
        model_cases=TARGET_MODEL_CASES,
        precision="bf16",
        peers=PEER_NAMES,
        implementations=IMPLEMENTATION_NAMES,
        seconds=2.0,
        minutes=9.0,
    ),
}


def profile_preset(name: str) -> ProfilePreset:
    """Raises :class:`UserError` for an unknown name."""
    if name not in PROFILE_PRESETS:
        raise UserError(f"unknown preset {name!r}; choose one of {', '.join(PROFILE_PRESETS)}")
    return PROFILE_PRESETS[name]
