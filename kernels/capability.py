"""What each backend can run, as a table of limits with their reasons.

The table makes the error messages, the answer of ``hmc-fast doctor`` and the shapes of the tests.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import Tensor

MIN_HEAD_DIM = 16
MAX_QK_HEAD_DIM = 256
MAX_V_HEAD_DIM = 2048
MAX_SOURCES = 8
CAPABLE_COMPUTE_CAPABILITY = (8, 0)
OLDEST_TRITON = (3, 6)


NUMPY_OF_OLD_INTERPRETERS, NEW_INTERPRETER = (2, 4), (3, 7)
"""NumPy 2.4 made int() of a one-element array an error, on which Triton before 3.7 relies."""


def _release(package: str) -> tuple[int, int] | None:
    try:
        major, minor = version(package).split(".")[:2]
    except PackageNotFoundError:
        return None
    return int(major), int(minor)


TRITON_RELEASE = _release("triton")
NUMPY_RELEASE = _release("numpy")
FUSED_DTYPES = (torch.float16, torch.bfloat16, torch.float32)


@dataclass(frozen=True)
class Problem:
    """The properties of one call that decide which backend can run it.

    ``qk_head_dim`` is None and ``v_head_dims`` are empty for the gated projection, which has none.
    """

    device: torch.device
    dtype: torch.dtype
    sources: int
    qk_head_dim: int | None = None
    v_head_dims: tuple[int, ...] = ()

    @classmethod
    def of_attention(cls, q: Tensor, vs: Sequence[Tensor]) -> "Problem":
        return cls(q.device, q.dtype, len(vs), q.shape[-1], tuple(v.shape[-1] for v in vs))

    @classmethod
    def of_projection(cls, attended: Sequence[Tensor]) -> "Problem":
        return cls(attended[0].device, attended[0].dtype, len(attended))


@dataclass(frozen=True)
class Limit:
    """One row of the table: ``holds(problem)`` is false where ``backend`` cannot run it."""

    backend: str
    argument: str
    allowed: str
    holds: Callable[[Problem], bool]
    actual: Callable[[Problem], object]

    def reason(self, problem: Problem) -> str | None:
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
        "cpu",
        "device of q, k, v",
        "a CPU",
        lambda p: p.device.type == "cpu",
        lambda p: p.device,
    ),
    Limit(
        "cpu",
        "dtype of q, k, v",
        "float16, bfloat16 or float32",
        lambda p: p.dtype in FUSED_DTYPES,
        lambda p: p.dtype,
    ),
    Limit(
        "triton",
        "the installed triton",
        f"release {OLDEST_TRITON[0]}.{OLDEST_TRITON[1]} or newer",
        lambda p: TRITON_RELEASE is not None and TRITON_RELEASE >= OLDEST_TRITON,
        lambda p: ".".join(map(str, TRITON_RELEASE)) if TRITON_RELEASE else "missing",
    ),
    Limit(
        "triton",
        "device of q, k, v",
        "an NVIDIA GPU of compute capability 8.0 or newer (or, for tests on a CPU, Triton's "
        "interpreter: set TRITON_INTERPRET=1 before the first call)",
        lambda p: _is_capable_gpu(p.device) or (p.device.type == "cpu" and interpreting()),
        lambda p: p.device,
    ),
    Limit(
        "triton",
        "dtype of q, k, v",
        "float16, bfloat16 or float32",
        lambda p: p.dtype in FUSED_DTYPES,
        lambda p: p.dtype,
    ),
    Limit(
        "triton",
        "dtype of q, k, v in Triton's interpreter",
        "float16 or float32, as its products of bfloat16 are wrong",
        lambda p: not (interpreting() and p.dtype == torch.bfloat16),
        lambda p: p.dtype,
    ),
    Limit(
        "triton",
        "the installed numpy under Triton's interpreter",
        "numpy before 2.4 or triton 3.7 and newer",
        lambda p: not (interpreting() and _breaks_interpreter(TRITON_RELEASE, NUMPY_RELEASE)),
        lambda p: ".".join(map(str, NUMPY_RELEASE or ())),
    ),
    Limit(
        "triton",
        "number of sources",
        f"1 to {MAX_SOURCES}",
        lambda p: 1 <= p.sources <= MAX_SOURCES,
        lambda p: p.sources,
    ),
    Limit(
        "triton",
        "head dim of q and k",
        f"{MIN_HEAD_DIM} to {MAX_QK_HEAD_DIM}",
        lambda p: p.qk_head_dim is None or MIN_HEAD_DIM <= p.qk_head_dim <= MAX_QK_HEAD_DIM,
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
    return reasons_against(Problem.of_attention(q, vs), backend)


def reasons_against(problem: Problem, backend: str) -> list[str]:
    """The reasons of every row of the table that ``problem`` fails for ``backend``."""
    reasons = (limit.reason(problem) for limit in CAPABILITIES if limit.backend == backend)
    return [reason for reason in reasons if reason is not None]


def interpreting() -> bool:
    """Whether Triton runs its kernels in its interpreter (``TRITON_INTERPRET``)."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


def _breaks_interpreter(triton: tuple[int, int] | None, numpy: tuple[int, int] | None) -> bool:
    if triton is None or numpy is None:
        return False
    return triton < NEW_INTERPRETER and numpy >= NUMPY_OF_OLD_INTERPRETERS


def _is_capable_gpu(device: torch.device) -> bool:
    return (
        device.type == "cuda"
        and torch.version.cuda is not None  # ROCm calls its devices cuda as well
        and torch.cuda.get_device_capability(device) >= CAPABLE_COMPUTE_CAPABILITY
    )
