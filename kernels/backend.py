"""Which backend runs: argument, then context manager, then ``HMC_FAST_BACKEND``, then auto.

An explicit choice never falls back: where it cannot run, the error lists every reason.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from hmc_fast.kernels.capability import Problem, reasons_against

BACKENDS = ("auto", "reference", "cpu", "triton")
ENVIRONMENT_VARIABLE = "HMC_FAST_BACKEND"

_choice: ContextVar[str | None] = ContextVar("backend", default=None)
_FASTEST = {"cpu": "cpu", "cuda": "triton"}
"""By the type of device."""


@dataclass(frozen=True)
class BackendChoice:
    """The backend that runs (``"reference"``, ``"cpu"`` or ``"triton"``) and why it was picked."""

    name: str
    why: str


class UnknownBackendError(ValueError):
    """A backend of that name does not exist."""


class BackendUnavailableError(RuntimeError):
    """An explicitly requested backend cannot run this call."""


@contextmanager
def use_backend(backend: str) -> Iterator[None]:
    """Choose the backend for every call inside the block that does not name one itself.

    Other threads are not affected, nor do they inherit the choice.

    Raises :class:`UnknownBackendError` for an unknown name.
    """
    check_backend_name(backend, "backend")
    token = _choice.set(backend)
    try:
        yield
    finally:
        _choice.reset(token)


def resolve_backend(requested: str, problem: Problem) -> BackendChoice:
    """The backend for one call, never ``"auto"``, which takes the fastest that can run.

    Raises :class:`UnknownBackendError` for an unknown name and :class:`BackendUnavailableError`
    where an explicit choice cannot run.
    """
    name, origin = _requested_backend(requested)
    if name == "auto":
        return _automatic_choice(problem)
    reasons = reasons_against(problem, name)
    if reasons:
        raise BackendUnavailableError(
            f"backend {name!r} ({origin}) cannot run this call: " + "; ".join(reasons)
        )
    return BackendChoice(name, origin)


def _automatic_choice(problem: Problem) -> BackendChoice:
    fastest = _FASTEST.get(problem.device.type)
    if fastest is None:
        return BackendChoice("reference", f"auto: no kernels of ours for {problem.device}")
    reasons = reasons_against(problem, fastest)
    if reasons:
        return BackendChoice("reference", "auto: " + "; ".join(reasons))
    return BackendChoice(
        fastest, f"auto: the fastest on {problem.device}, and it can run this call"
    )


def _requested_backend(argument: str) -> tuple[str, str]:
    check_backend_name(argument, "backend")
    if argument != "auto":
        return argument, "chosen by argument"
    chosen = _choice.get()
    if chosen is not None:
        return chosen, "chosen by use_backend"
    from_environment = os.environ.get(ENVIRONMENT_VARIABLE, "auto")
    check_backend_name(from_environment, ENVIRONMENT_VARIABLE)
    return from_environment, f"chosen by {ENVIRONMENT_VARIABLE}"


def check_backend_name(name: str, where: str) -> None:
    """Raises :class:`UnknownBackendError`; ``where`` says who named it."""
    if name not in BACKENDS:
        raise UnknownBackendError(f"{where} is {name!r}; it must be one of {', '.join(BACKENDS)}")
