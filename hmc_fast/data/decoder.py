"""Decoding of compressed frames, in a child process that may die of them.

One child serves a process for as long as it lives; it is started at the first compressed film and
again after a death. Threads take turns, and a forked process starts its own.
"""

import atexit
import fcntl
import json
import math
import os
import select
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hmc_fast.data.codestream import Codestream
from hmc_fast.data.limits import MAX_PIXELS, max_pixels

WORKER = Path(__file__).with_name("decoding_worker.py")
DEADLINE_S = 120.0
"""For a frame of :data:`MAX_PIXELS`, ten times what it takes; a larger one has as much more."""
GRACE_S = 30.0
"""After the deadline the child ends itself, where nobody is left to end it."""
MEMORY_BYTES = 6 * 2**30
"""Of the child, for a frame of :data:`MAX_PIXELS`; a larger one has as much more."""
PIPE_BYTES = 2**20
"""Linux's largest without privileges; larger pipes need fewer changes of process."""


class Decoder:
    """A child process that decodes one frame at a time."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._child: subprocess.Popen[bytes] | None = None

    def decode(self, frame: bytes, header: Codestream, transfer_syntax: str) -> NDArray[np.integer]:
        """Pixels ``[rows, columns]`` of 1 or 2 bytes; of several components ``[..., components]``.

        Raises ``ValueError`` where the decoder complains, dies, or takes too long.
        """
        budgets = max(1.0, min(header.rows * header.columns, max_pixels()) / MAX_PIXELS)
        deadline_s = budgets * DEADLINE_S
        request = {
            "memory": int(budgets * MEMORY_BYTES),
            "life_s": int(deadline_s + GRACE_S),
            "codec": header.codec,
            "rows": header.rows,
            "columns": header.columns,
            "components": header.components,
            "bits": header.bits,
            "transfer_syntax": transfer_syntax,
            "length": len(frame),
        }
        with self._lock:
            pixels = self._ask(json.dumps(request).encode() + b"\n" + frame, deadline_s)
        sample_bytes = 1 if header.bits <= 8 else 2
        shape = (header.rows, header.columns, header.components)
        if len(pixels) != math.prod(shape) * sample_bytes:
            raise ValueError(f"the decoder gave {len(pixels)} bytes for the film")
        decoded = np.frombuffer(pixels, f"<u{sample_bytes}").reshape(shape)
        return decoded[..., 0] if header.components == 1 else decoded

    def close(self) -> None:
        """End the child."""
        child, self._child = self._child, None
        if child is not None:
            child.kill()
            child.communicate()

    def forget(self) -> None:
        """Leave the child to the process that this one was forked from."""
        self._lock = threading.Lock()
        self._child = None

    def _ask(self, request: bytes, deadline_s: float) -> bytearray:
        child = self._child
        if child is None or child.poll() is not None:
            child = self._start()
        deadline = time.monotonic() + deadline_s
        answer: dict[str, Any] = {}
        try:
            assert child.stdin is not None  # it is a pipe
            child.stdin.write(request)
            child.stdin.flush()
            answer = json.loads(_read_line(child, deadline))
            pixels = _read(child, answer["length"], deadline)
        except BaseException as error:
            self.close()
            if isinstance(error, TimeoutError):
                raise ValueError(f"the decoder took over {deadline_s:.0f} s") from None
            if isinstance(error, OSError | EOFError):
                raise ValueError("the codestream ends the decoder") from None
            raise
        if answer["problem"]:
            raise ValueError(f"the decoder complains: {' '.join(str(answer['problem']).split())}")
        return pixels

    def _start(self) -> subprocess.Popen[bytes]:
        # -P keeps the working directory, where anything may be named like a decoder, off the path.
        self._child = subprocess.Popen(
            [sys.executable, "-P", str(WORKER)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={**os.environ, "OPENBLAS_NUM_THREADS": "1"},
        )
        for pipe in (self._child.stdin, self._child.stdout):
            with suppress(OSError):  # where the system allows less, it is only slower
                fcntl.fcntl(pipe, fcntl.F_SETPIPE_SZ, PIPE_BYTES)  # type: ignore[arg-type]  # no None
        return self._child


def _read_line(child: subprocess.Popen[bytes], deadline: float) -> bytes:
    line = b""
    while not line.endswith(b"\n"):
        line += _read(child, 1, deadline)
    return line


def _read(child: subprocess.Popen[bytes], size: int, deadline: float) -> bytearray:
    """Raises ``EOFError`` where the child ends first, ``TimeoutError`` where it is too late."""
    assert child.stdout is not None  # it is a pipe
    descriptor = child.stdout.fileno()
    poll = select.poll()
    poll.register(descriptor, select.POLLIN)
    result, done = bytearray(size), 0
    view = memoryview(result)
    while done < size:
        left_ms = (deadline - time.monotonic()) * 1000
        if left_ms <= 0 or not poll.poll(left_ms):
            raise TimeoutError
        count = os.readv(descriptor, [view[done:]])
        if not count:
            raise EOFError
        done += count
    return result


DECODER = Decoder()
"""Of this process."""
atexit.register(DECODER.close)
os.register_at_fork(after_in_child=DECODER.forget)
