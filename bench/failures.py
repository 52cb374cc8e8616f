"""What a peer raised, as one line and a status for its row."""

import re
import warnings
from collections.abc import Sequence
from typing import Literal

import torch

MAX_LENGTH = 300
_REFUSALS = ("No available kernel", "No viable backend")
# Compilers wrap the reason into their own errors, as text.
_NOT_IMPLEMENTED = re.compile(r"NotImplementedError(?:: |\(['\"])([^\n'\"]+)")


def status_of(error: Exception) -> Literal["unavailable", "error"]:
    """``unavailable`` where the peer refuses the call, ``error`` where it breaks."""
    text = str(error)
    refused = any(refusal in text for refusal in _REFUSALS)
    missing = isinstance(error, NotImplementedError) or _NOT_IMPLEMENTED.search(text) is not None
    return "unavailable" if refused or missing else "error"


def describe(error: Exception, caught: Sequence[warnings.WarningMessage] = ()) -> str:
    """One line; ``caught`` are the warnings before it, in which PyTorch gives its reasons."""
    text = " ".join(str(error).split())
    if isinstance(error, torch.OutOfMemoryError):
        return f"out of memory: {text}"[:MAX_LENGTH]
    match = _NOT_IMPLEMENTED.search(str(error))
    if match is not None:
        return match[1][:MAX_LENGTH]
    if any(refusal in text for refusal in _REFUSALS):
        return (_warned_reasons(caught) or text)[:MAX_LENGTH]
    return f"{type(error).__name__}: {text}"[:MAX_LENGTH]


def _warned_reasons(caught: Sequence[warnings.WarningMessage]) -> str:
    reasons = [" ".join(str(w.message).split(" (Triggered internally")[0].split()) for w in caught]
    return "; ".join(dict.fromkeys(r for r in reasons if not r.endswith("because:")))
