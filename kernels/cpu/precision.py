"""At which precision products are computed: exact fp32, or bf16 where inputs hold no more.

Some processors multiply bf16 several times faster than fp32 and add up in fp32. Probabilities and
their gradients are then rounded to bf16 before they multiply, as in every fused kernel. Such a
product comes out in bf16 as well, and blocks of it are summed in fp32.

Scores and the gradients of probabilities have to come out in fp32. With Intel AMX, PyTorch has a
setting of the whole process for that: fp32 products of rounded operands. Products of two bf16
inputs lose nothing by it. It is on only while such a call runs, and no call of ours that wants
exact products runs meanwhile; fp32 products of *other* code in other threads may be rounded as
well.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import torch
from torch import Tensor

_SETTING = torch.backends.mkldnn.matmul  # type: ignore[attr-defined]  # of the module's class


LEAST_SCORES = 2**16
"""Of a head: below, preparing a rounded product costs more than it saves. Measured at 96² and 384²,
on either side of it, on two idle cores."""


def has_tiles() -> bool:
    """Whether the processor has Intel AMX for bf16."""
    return bool(torch.cpu.get_capabilities().get("amx_bf16", False))


def is_wide_amd(instructions: str = "avx512_f") -> bool:
    """Whether this is a processor of AMD with these ``instructions``, by PyTorch's name."""
    facts = torch.cpu.get_capabilities()
    return bool(facts.get(instructions)) and facts.get("cpu_name", "").startswith("AMD")


def multiplies_bf16_fast() -> bool:
    """Whether this processor's bf16 products are clearly faster than those in fp32.

    So they are with Intel AMX, and with AVX-512-BF16 on AMD, twice in one thread on Zen 5. On an
    Intel Xeon with AVX-512-BF16 and no AMX they ran at half the rate of fp32.
    """
    return has_tiles() or is_wide_amd("avx512_bf16")


def rounds_products(q: Tensor, keys: Sequence[Tensor]) -> bool:
    """Whether products of ``q [·, M, …]`` and ``keys[s] [·, N_s, …]`` are computed in bf16 here."""
    return (
        q.dtype == torch.bfloat16
        and q.shape[1] * sum(key.shape[1] for key in keys) >= LEAST_SCORES
        and multiplies_bf16_fast()
    )


class _Turns:
    """Lets calls of one kind run side by side, and those of the other kind wait for them."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._running = 0
        self._rounding = False
        self._setting = "none"
        """PyTorch's setting while nothing rounds."""

    def enter(self, rounding: bool) -> None:
        with self._changed:
            self._changed.wait_for(lambda: self._running == 0 or self._rounding == rounding)
            if self._running == 0 and rounding:
                self._setting = _SETTING.fp32_precision
                _SETTING.fp32_precision = "bf16"
            self._rounding = rounding
            self._running += 1

    def leave(self) -> None:
        with self._changed:
            self._running -= 1
            if self._running == 0:
                if self._rounding:
                    _SETTING.fp32_precision = self._setting
                self._changed.notify_all()


_turns = _Turns()


@contextmanager
def products_of(q: Tensor, keys: Sequence[Tensor]) -> Iterator[None]:
    """Inside, fp32 products are rounded or exact; rounded with tiles only."""
    if not has_tiles():
        yield
        return
    _turns.enter(rounds_products(q, keys))
    try:
        yield
    finally:
        _turns.leave()
