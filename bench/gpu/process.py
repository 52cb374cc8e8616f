"""One command in a process group of its own, with a time limit, its output in a log."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from threading import Event

from hmc_fast.bench.gpu import launch

POLL_S = 0.1
GRACE_S = 3.0
"""Between asking a process to end and ending it."""


@dataclass(frozen=True)
class Ended:
    """How a command ended: ``code`` is negative for a signal, None where it was stopped."""

    code: int | None
    seconds: float


def run_limited(
    command: Sequence[str],
    log: Path,
    limit_s: float,
    stop: Event,
    *,
    needs_gpu: bool,
    environment: Mapping[str, str],
) -> Ended:
    """Run ``command`` until it ends, ``limit_s`` is over or ``stop`` is set; append to ``log``.

    Nothing that it started is left, and it does not outlive this process either.
    """
    prelude = [sys.executable, "-I", launch.__file__, str(os.getpid())]
    prelude.append("gpu" if needs_gpu else "any")
    started = time.monotonic()
    with (
        log.open("ab") as output,
        subprocess.Popen(
            [*prelude, *command],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            env={**os.environ, **environment},
            start_new_session=True,
        ) as process,
    ):
        try:
            code = _wait(process, started + limit_s, stop)
        finally:
            _end(process)
    return Ended(code, time.monotonic() - started)


def _wait(process: "subprocess.Popen[bytes]", deadline: float, stop: Event) -> int | None:
    while time.monotonic() < deadline and not stop.is_set():
        with suppress(subprocess.TimeoutExpired):
            return process.wait(POLL_S)
    return None


def _end(process: "subprocess.Popen[bytes]") -> None:
    """End whatever of the group still runs."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGTERM)
        with suppress(subprocess.TimeoutExpired):
            process.wait(GRACE_S)
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
