"""What each backend can run, as a table of limits with their reasons.

The table makes the error messages, the answer of ``hmc-fast doctor`` and the shapes of the tests.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

MIN_HEAD_DIM = 16
MAX_QK_HEAD_DIM = 256
MAX_V_HEAD_DIM = 2048
CAPABLE_COMPUTE_CAPABILITY = (8, 0)
FUSED_KERNELS_INCLUDED = False
"""This release holds the reference implementation only."""


@dataclass(frozen=True)
class AttentionProblem:
    """The properties of one call that decide which backend can run it."""

    device: torch.device
    dtype: torch.dtype
    qk_head_dim: int
    v_head_dims: tuple[int, ...]

    @classmethod
    def of(cls, q: Tensor, vs: Sequence[Tensor]) -> "AttentionProblem":
        return cls(q.device, q.dtype, q.shape[-1], tuple(v.shape[-1] for v in vs))


@dataclass(frozen=True)
class Limit:
    """One row of the table: ``holds(problem)`` is false where ``backend`` cannot run it."""

    backend: str
    argument: str
    allowed: str
    holds: Callable[[AttentionProblem], bool]
    actual: Callable[[AttentionProblem], object]

    def reason(self, problem: AttentionProblem) -> str | None:
        """Why ``problem`` is outside this limit, or None where it is inside."""
        if self.holds(problem):
            return None
        return f"{self.argument} is {self.actual(problem)}; {self.backend} needs {self.allowed}"


CAPABILITIES: tuple[Limit, ...] = (
    Limit(
        "reference",
        "dtype of q, k, v",
        "float16, bfloat16, float32 or float64",
        lambda p: p.dtype in (torch.float16, torch.bfloat16, torch.float32, torch.float64),
        lambda p: p.dtype,
    ),
    Limit(
        "triton",
        "this release of hmc-fast",
        "one that contains the fused Triton kernels",
        lambda p: FUSED_KERNELS_INCLUDED,
        lambda p: "without fused kernels",
    ),
    Limit(
        "triton",
        "device of q, k, v",
        "an NVIDIA GPU of compute capability 8.0 or newer",
        lambda p: p.device.type == "cuda" and _is_capable_gpu(p.device),
        lambda p: p.device,
    ),
    Limit(
        "triton",
        "dtype of q, k, v",
        "float16, bfloat16 or float32",
        lambda p: p.dtype in (torch.float16, torch.bfloat16, torch.float32),
        lambda p: p.dtype,
    ),
    Limit(
        "triton",
        "head dim of q and k",
        f"{MIN_HEAD_DIM} to {MAX_QK_HEAD_DIM}",
        lambda p: MIN_HEAD_DIM <= p.qk_head_dim <= MAX_QK_HEAD_DIM,
        lambda p: p.qk_head_dim,
    ),
    Limit(
        "triton",
        "head dim of v",
        f"{MIN_HEAD_DIM} to {MAX_V_HEAD_DIM}",
        lambda p: all(MIN_HEAD_DIM <= d <= MAX_V_HEAD_DIM for d in p.v_head_dims),
        lambda p: ", ".join(map(str, p.v_head_dims)),
    ),
)


def why_not(
    q: Tensor,
    k: Tensor | Sequence[Tensor],
    v: Tensor | Sequence[Tensor],
    backend: str = "triton",
) -> list[str]:
    """Every limit of ``backend`` that this call exceeds; an empty list means it can run.

    ``k`` and ``v`` are tensors, or lists of them for several sources. Shapes as in
    :func:`hmc_fast.kernels.attention`.
    """
    del k
    vs = [v] if isinstance(v, Tensor) else list(v)
    return reasons_against(AttentionProblem.of(q, vs), backend)


def reasons_against(problem: AttentionProblem, backend: str) -> list[str]:
    """The reasons of every row of the table that ``problem`` fails for ``backend``."""
    reasons = (limit.reason(problem) for limit in CAPABILITIES if limit.backend == backend)
    return [reason for reason in reasons if reason is not None]


def _is_capable_gpu(device: torch.device) -> bool:
    return torch.cuda.is_available() and (
        torch.cuda.get_device_capability(device) >= CAPABLE_COMPUTE_CAPABILITY
    )
