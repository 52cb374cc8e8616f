"""Case after case, so that one that fails, or finds no time left, does not cost the others."""

import time
from collections.abc import Iterable, Iterator
from typing import Literal, Protocol

import torch

from hmc_fast.bench.failures import describe
from hmc_fast.bench.peak_memory import release
from hmc_fast.bench.profile_record import Measurement

OVER = "the time set for the whole run was over"


class CaseBench(Protocol):
    """One case: it takes its memory in :meth:`run`, not before."""

    def run(self, deadline_s: float) -> list[Measurement]:
        """Rows of the case; past ``deadline_s`` they say that they were skipped."""

    def unmeasured(self, status: Literal["skipped", "error"], reason: str) -> list[Measurement]:
        """A row for everything that would have been measured."""


def run_cases(
    benches: Iterable[CaseBench], device: torch.device, deadline_s: float
) -> Iterator[list[Measurement]]:
    """Rows of each case in turn; ``deadline_s`` counts on ``time.perf_counter``.

    Compiled code and memory of a case are given back before the next begins.
    """
    # Every case and batch size is a graph of its own, more than the limit's default of 8.
    limits = torch._dynamo.config.patch(recompile_limit=256, accumulated_recompile_limit=4096)
    for bench in benches:
        if time.perf_counter() > deadline_s:
            yield bench.unmeasured("skipped", OVER)
            continue
        with limits:
            try:
                yield bench.run(deadline_s)
            except Exception as error:
                # The inputs or the truth do not fit into memory, for example.
                yield bench.unmeasured("error", describe(error))
        del bench
        torch._dynamo.reset()
        release(device)
