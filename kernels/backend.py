"""Which implementation runs: argument, then context manager, then ``HMC_FAST_BACKEND``, then auto.

An explicit choice never falls back: where it cannot run, the error lists every reason.
"""

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

from torch import Tensor

from hmc_fast.kernels.capability import AttentionProblem, reasons_against

BACKENDS = ("auto", "reference", "triton")
ENVIRONMENT_VARIABLE = "HMC_FAST_BACKEND"

_context_choices: list[str] = []


@dataclass(frozen=True)
class BackendChoice:
    """The backend that runs (``"reference"`` or ``"triton"``) and why it was picked."""

    name: str
    why: str


class BackendUnavailableError(RuntimeError):
    """An explicitly requested backend cannot run this call."""


@contextmanager
def use_backend(backend: str) -> Iterator[None]:
    """Choose the backend for every call inside the block that does not name one itself.

    Raises ``ValueError`` for an unknown name.
    """
    _check_name(backend, "backend")
    _context_choices.append(backend)
    try:
        yield
    finally:
        _context_choices.pop()


def resolve_backend(requested: str, q: Tensor, vs: Sequence[Tensor]) -> BackendChoice:
    """The backend for one call, never ``"auto"``.

    Raises ``ValueError`` for an unknown name and :class:`BackendUnavailableError` where an explicit
    choice cannot run.
    """
    name, origin = _requested_backend(requested)
    problem = AttentionProblem.of(q, vs)
    if name == "auto":
        reasons = reasons_against(problem, "triton")
        if not reasons:
            return BackendChoice("triton", "auto: the fused kernels can run this call")
        return BackendChoice("reference", "auto: " + "; ".join(reasons))
    reasons = reasons_against(problem, name)
    if reasons:
        raise BackendUnavailableError(
            f"backend {name!r} ({origin}) cannot run this call: " + "; ".join(reasons)
        )
    return BackendChoice(name, origin)


def _requested_backend(argument: str) -> tuple[str, str]:
    _check_name(argument, "backend")
    if argument != "auto":
        return argument, "chosen by argument"
    if _context_choices:
        return _context_choices[-1], "chosen by use_backend"
    from_environment = os.environ.get(ENVIRONMENT_VARIABLE, "auto")
    _check_name(from_environment, ENVIRONMENT_VARIABLE)
    return from_environment, f"chosen by {ENVIRONMENT_VARIABLE}"


def _check_name(name: str, where: str) -> None:
    if name not in BACKENDS:
        raise ValueError(f"{where} is {name!r}; it must be one of {', '.join(BACKENDS)}")
