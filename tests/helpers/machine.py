"""A process with disks of its own, which runs command lines and kills them where it is told to.

It has imported everything once and forks for each command, so that a command takes no start. Its
disks are file systems in memory: of any size, and read-only where that is asked for. Nothing of
them is seen outside, but through :meth:`Machine.seen`.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import pytest

DISK = Path("/mnt")
"""In every machine, so that results that name their place are equal."""
PAGE = 4096
"""Bytes; a file takes whole pages."""
STEPS = {
    "os.mkdir": 0, "os.remove": 0, "os.rename": 1, "os.rmdir": 0, "os.truncate": 0, "open": 0,
    "shutil.rmtree": 0,
}  # fmt: skip
"""Audit events that change a disk, and which of their arguments says where."""
LONGEST_WAIT_S = 300


@dataclass(frozen=True)
class Fault:
    """Something that happens just before the ``step``-th change of the disk, or a while later."""

    step: int
    after_s: float = 0.0
    kill: bool = True
    back_s: float = 0.0
    """Seconds by which the clock is set back."""


@dataclass(frozen=True)
class Ended:
    """A command: exit code (negative for a signal), output, and how often it changed the disk."""

    code: int
    out: str
    err: str
    steps: int

    @property
    def line(self) -> str:
        """The last line of the errors, which is to be the only one that a failure has."""
        assert "Traceback" not in self.err, self.err
        return self.err.strip().splitlines()[-1] if self.err.strip() else ""


@dataclass
class Machine:
    """``disk`` is its disk, as commands on it name it."""

    process: "subprocess.Popen[str]"
    disk: Path = DISK

    def run(self, words: Sequence[object], fault: Fault | None = None) -> Ended:
        """Run ``hmc-fast words``; with a ``fault``, it comes over it."""
        told = None if fault is None else asdict(fault)
        return Ended(**self._ask(words=[str(word) for word in words], fault=told))

    def new_disk(self, size: int = 0) -> None:
        """An empty disk; ``size`` in bytes, 0 for all that is wanted."""
        self._ask(mount=f"size={size or '90%'},mode=755")

    def set_disk(self, options: str) -> None:
        """Set the disk's size anew, or make it read-only: options of ``mount``."""
        self._ask(mount=f"remount,{options}")

    def seen(self, path: Path | str = "") -> Path:
        """A file of the disk, or the disk, from outside."""
        return Path(f"/proc/{self.process.pid}/root{self.disk / path}")

    def _ask(self, **request: Any) -> Any:
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(request) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            pytest.fail("the machine has ended")
        return json.loads(answer)


@contextmanager
def machine() -> Iterator[Machine]:
    """A machine, or a skipped test where the system gives none."""
    if not all(map(shutil.which, ("unshare", "mount"))) or not DISK.is_dir():
        pytest.skip(f"needs unshare, mount and a folder {DISK}")
    rights = ["--map-root-user"] if os.geteuid() else []
    with tempfile.TemporaryDirectory() as folder:
        process = subprocess.Popen(
            ["unshare", "--mount", *rights, sys.executable, __file__, folder],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=None,
            text=True,
        )
        try:
            assert process.stdout is not None
            if process.stdout.readline() != "mounted\n":
                pytest.skip("needs the right to make a mount namespace")
            assert process.stdout.readline() == "ready\n"
            yield Machine(process)
        finally:
            process.kill()
            process.wait()


def _serve(folder: Path) -> None:
    """Inside: answer requests, one a line, until there are no more."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    _mount("size=90%", first=True)
    print("mounted", file=answers, flush=True)
    _import_all()
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        request = json.loads(line)
        answer = None
        if "mount" in request:
            _mount(request["mount"])
        else:
            answer = _run(request["words"], request["fault"], folder)
        print(json.dumps(answer), file=answers, flush=True)


def _mount(options: str, *, first: bool = False) -> None:
    again = options.startswith("remount")
    if not first and not again:
        subprocess.run(["umount", DISK], check=True)
    kind = [] if again else ["-t", "tmpfs"]
    subprocess.run(["mount", *kind, "-o", options, "none", DISK], check=True)


def _import_all() -> None:
    """Whatever the commands import when they run; nothing is computed, so that forks are sound."""
    import importlib
    import pkgutil

    import hmc_fast
    from hmc_fast.cli.app import application

    application()
    for package in pkgutil.walk_packages(hmc_fast.__path__, "hmc_fast."):
        if package.name.rpartition(".")[2] not in ("__main__", "tensorrt_plugin"):
            try:
                importlib.import_module(package.name)
            except ImportError:  # an extra that is not there
                continue


def _run(words: list[str], fault: dict[str, Any] | None, folder: Path) -> dict[str, Any]:
    import time

    names = [folder / name for name in ("out", "err", "steps")]
    child = os.fork()
    if not child:
        _child(words, fault, folder, names)
    deadline = time.monotonic() + LONGEST_WAIT_S
    while not (ended := os.waitpid(child, os.WNOHANG))[0]:
        if time.monotonic() > deadline:
            os.killpg(child, 9)
        time.sleep(0.002)
    with suppress(ProcessLookupError):  # what it has started ends with it
        os.killpg(child, 9)
    out, err, steps = (name.read_text(errors="replace") for name in names)
    code = os.waitstatus_to_exitcode(ended[1])
    return {"code": code, "out": out, "err": err, "steps": len(steps)}


def _child(words: list[str], fault: dict[str, Any] | None, folder: Path, names: list[Path]) -> None:
    code = 99
    try:
        os.setsid()
        os.chdir(folder)
        nothing = os.open(os.devnull, os.O_RDONLY)
        out, err, steps = (os.open(n, os.O_WRONLY | os.O_CREAT | os.O_TRUNC) for n in names)
        for descriptor, number in ((nothing, 0), (out, 1), (err, 2)):
            os.dup2(descriptor, number)
        _watch(steps, None if fault is None else Fault(**fault))
        from hmc_fast.cli.app import run

        code = run(words)
    except BaseException:
        import traceback

        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)


def _watch(steps: int, fault: Fault | None) -> None:
    """Count the changes of the disk, and let the fault come over the one that it is meant for."""
    import signal
    import threading

    count = 0

    def strike(fault: Fault) -> None:
        if fault.back_s:
            _set_clock_back(fault.back_s)
        if fault.kill:
            os.killpg(0, signal.SIGKILL)

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        nonlocal count
        if event not in STEPS or not _is_on_disk(arguments[STEPS[event]]):
            return
        if event == "open" and not arguments[2] & (os.O_WRONLY | os.O_RDWR | os.O_CREAT):
            return
        os.write(steps, b".")
        if fault is not None and count == fault.step:
            if fault.after_s:
                threading.Timer(fault.after_s, strike, [fault]).start()
            else:
                strike(fault)
        count += 1

    sys.addaudithook(hook)


def _set_clock_back(seconds: float) -> None:
    """For this process's code; what is on the disk looks, from now on, as if made later."""
    import time
    from datetime import datetime, timedelta, tzinfo

    class Earlier(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]  # no Earlier
            return datetime.now(tz) - timedelta(seconds=seconds)

    now, now_ns = time.time, time.time_ns
    time.time = lambda: now() - seconds
    time.time_ns = lambda: now_ns() - int(seconds * 1e9)
    for name, module in list(sys.modules.items()):
        if name.startswith("hmc_fast") and getattr(module, "datetime", None) is datetime:
            module.datetime = Earlier  # type: ignore[attr-defined]  # it has one
    for path in DISK.rglob("*"):
        later = path.stat().st_mtime + seconds
        os.utime(path, (later, later))


def _is_on_disk(path: object) -> bool:
    if isinstance(path, bytes):
        path = os.fsdecode(path)
    return isinstance(path, str | os.PathLike) and Path(path).absolute().is_relative_to(DISK)


if __name__ == "__main__":
    _serve(Path(sys.argv[1]))
