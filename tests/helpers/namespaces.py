"""Networks of their own for programs that listen, and the end of all that ran in them."""

import os
import shutil
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil
import pytest

OUTER = "192.0.2.9"
"""An address beyond loopback that every namespace has, as a machine on a network does."""
SETUP = (
    "ip link set lo up && ip link add v0 type veth peer name v1 && ip link set v1 up && "
    f"ip address add {OUTER}/24 dev v0 && ip link set v0 up && "
    "ip route add default via 192.0.2.1 && echo ready && exec sleep infinity"
)


@dataclass(frozen=True)
class Namespace:
    """A network of which ``holder`` is the first process."""

    holder: int

    def start(
        self, command: Sequence[str], environment: Mapping[str, str] | None = None, **options: Any
    ) -> "subprocess.Popen[str]":
        """Run a command in it, with more variables than ours."""
        target = ["nsenter", "--target", str(self.holder), "--net"]
        if os.geteuid():
            target += ["--user", "--preserve-credentials"]
        return subprocess.Popen(
            [*target, *command], env=os.environ | (environment or {}), text=True, **options
        )

    def processes(self) -> list[psutil.Process]:
        """All that run in it, but for the holder."""
        return [process for process in psutil.process_iter() if self._holds(process.pid)]

    def listening(self) -> set[str]:
        """Addresses at which something in it listens."""
        shown, _ = self.start(["ss", "-H", "-l", "-t", "-n"], stdout=subprocess.PIPE).communicate()
        addresses = [line.split()[3].rpartition(":")[0] for line in shown.splitlines()]
        return {address.strip("[]").removeprefix("::ffff:") for address in addresses}

    def _holds(self, pid: int) -> bool:
        try:
            network = Path(f"/proc/{pid}/ns/net").readlink()
        except OSError:
            return False
        return pid != self.holder and network == Path(f"/proc/{self.holder}/ns/net").readlink()


@contextmanager
def namespace() -> Iterator[Namespace]:
    """A network of its own, or a skipped test where the system gives none."""
    if not all(map(shutil.which, ("unshare", "nsenter", "ip", "ss"))):
        pytest.skip("needs unshare, nsenter, ip and ss")
    rights = ["--map-root-user"] if os.geteuid() else []
    holder = subprocess.Popen(
        ["unshare", "--net", *rights, "sh", "-c", SETUP],
        stdout=subprocess.PIPE,
        stderr=subprocess.DEVNULL,
        text=True,
    )
    try:
        assert holder.stdout is not None
        if holder.stdout.readline() != "ready\n":
            pytest.skip("needs the right to make a network namespace")
        inside = Namespace(holder.pid)
        try:
            yield inside
        finally:
            while left := inside.processes():  # who is killed last may have started another
                for process in left:
                    if process.status() != psutil.STATUS_ZOMBIE:
                        process.kill()
                time.sleep(0.05)
                psutil.wait_procs(left, timeout=5)
    finally:
        holder.kill()
        holder.wait()
