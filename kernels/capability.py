"""What each backend can run, as a table of limits with their reasons.

The table makes the error messages, the answer of ``hmc-fast doctor`` and the shapes of the tests.
"""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version

import torch
from torch import Tensor

from hmc_fast.kernels.problem import AttentionProblem, ProjectionProblem

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


Problem = AttentionProblem | ProjectionProblem


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
        lambda p: all(MIN_HEAD_DIM <= d <= MAX_QK_HEAD_DIM for d in _head_dims(p)[0]),
        lambda p: ", ".join(map(str, _head_dims(p)[0])),
    ),
    Limit(
        "triton",
        "head dim of v",
        f"{MIN_HEAD_DIM} to {MAX_V_HEAD_DIM}",
        lambda p: all(MIN_HEAD_DIM <= d <= MAX_V_HEAD_DIM for d in _head_dims(p)[1]),
        lambda p: ", ".join(map(str, _head_dims(p)[1])),
    ),
)

_NO_MASK = "no backend has masks; leave the tokens out instead"
NOWHERE = {
    "key_padding_mask": _NO_MASK,
    "attn_mask": _NO_MASK,
    "is_causal": "no backend is causal; every query sees every key",
    "dropout": "no backend drops attention out; use 0, and drop features out elsewhere",
    "add_bias_kv": "no backend adds a token to keys and values; add it to them yourself",
    "add_zero_attn": "no backend adds a token to keys and values; add it to them yourself",
}
"""What other attention does and no backend here, by the argument that asks for it, and why not."""


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
    ks, vs = ([x] if isinstance(x, Tensor) else list(x) for x in (k, v))
    return reasons_against(AttentionProblem.of(q, ks, vs), backend)


def reasons_against(problem: Problem, backend: str) -> list[str]:
    """The reasons of every row of the table that ``problem`` fails for ``backend``."""
    reasons = (limit.reason(problem) for limit in CAPABILITIES if limit.backend == backend)
    return [reason for reason in reasons if reason is not None]


def interpreting() -> bool:
    """Whether Triton runs its kernels in its interpreter (``TRITON_INTERPRET``)."""
    return os.environ.get("TRITON_INTERPRET", "0").lower() in ("1", "true", "on", "yes", "y")


def _head_dims(problem: Problem) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Of q and k, and of the values; a projection has none."""
    if isinstance(problem, ProjectionProblem):
        return (), ()
    return (problem.qk_head_dim,), problem.v_head_dims


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
