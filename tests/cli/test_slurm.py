"""Slurm's own controller and daemon run the array jobs that the pages show."""

import os
import shutil
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from tempfile import mkdtemp

import pytest
from namespaces import Namespace, namespace

from hmc_fast.cli.app import run
from hmc_fast.data import write_phantoms
from hmc_fast.prediction.manifest import CHUNK_FILMS

pytestmark = pytest.mark.systems
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "sinfo")
READY_S = 60.0
CONFIGURATION = """
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
AuthType=auth/munge
AuthInfo=socket={folder}/munge.socket
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SelectType=select/cons_tres
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
MpiDefault=none
NodeName=node NodeHostname={host} NodeAddr=127.0.0.1 CPUs=2
PartitionName=all Nodes=node Default=YES State=UP
"""


class Slurm:
    """A cluster of one node with two processors."""

    def __init__(self, inside: Namespace, folder: Path) -> None:
        self._inside = inside
        self._folder = folder
        configuration = folder / "slurm.conf"
        configuration.write_text(CONFIGURATION.format(host=socket.gethostname(), folder=folder))
        self._variables = {"SLURM_CONF": str(configuration), "OMP_NUM_THREADS": "1"}
        (folder / "state").mkdir()
        key = folder / "munge.key"
        key.write_bytes(os.urandom(128))
        key.chmod(0o600)
        own = [f"--{name}-file={folder}/munge.{name}" for name in ("key", "pid", "seed", "log")]
        self._start("munged", "--foreground", "--force", f"--socket={folder}/munge.socket", *own)
        self._wait("munge", (folder / "munge.socket").exists)
        self._start("slurmctld", "-D")
        self._start("slurmd", "-D", "-N", "node")
        self._wait("the node", lambda: "idle" in self._said("sinfo", "-h", "-o", "%t"))

    def _start(self, *command: str) -> None:
        self._inside.start(
            command, self._variables, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )

    def _said(self, *command: str) -> str:
        process = self._inside.start(
            command, self._variables, stdout=subprocess.PIPE, stderr=subprocess.STDOUT
        )
        return str(process.communicate(timeout=5 * READY_S)[0])

    def _wait(self, what: str, ready: Callable[[], object]) -> None:
        deadline = time.monotonic() + READY_S
        while not ready():
            logs = {path.name: path.read_text()[-2000:] for path in self._folder.glob("*.log")}
            assert time.monotonic() < deadline, (what, logs)
            time.sleep(0.2)

    def array(self, tasks: str, *words: object) -> str:
        """Run ``hmc-fast`` as an array job, which may use ``$SLURM_ARRAY_TASK_ID``; all is said."""
        command = " ".join([sys.executable, "-m", "hmc_fast", *map(str, words)])
        output = self._folder / f"{words[0]}-%a.out"
        submitted = self._said(
            "sbatch", "--wait", f"--array={tasks}", f"--output={output}", "--wrap", command
        )
        outputs = sorted(self._folder.glob(f"{words[0]}-*.out"))
        return submitted + "".join(path.read_text() for path in outputs)


@pytest.fixture(scope="module")
def slurm() -> Iterator[Slurm]:
    missing = [program for program in PROGRAMS if shutil.which(program) is None]
    if missing:
        pytest.skip(f"needs Debian's {', '.join(missing)}")
    folder = Path(mkdtemp(prefix="slurm", dir="/tmp"))  # munge wants a folder that all may enter
    folder.chmod(0o755)
    try:
        with namespace() as inside:
            yield Slurm(inside, folder)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def test_shares_of_a_prediction(slurm: Slurm, checkpoint: Path, tmp_path: Path) -> None:
    """Side by side or one after the other: whoever is last writes the table."""
    table, films = tmp_path / "scores.csv", tmp_path / "films"
    write_phantoms(films, patients=CHUNK_FILMS // 2 + 4, size=64)
    words = ["predict", films, "--checkpoint", checkpoint, "--out", table]
    said = slurm.array("1-2", *words, "--chunk", "$SLURM_ARRAY_TASK_ID/2")
    assert "Submitted batch job" in said
    assert table.exists(), said
    assert len(list(tmp_path.glob("scores.csv.parts/part-*"))) == 2
    whole = tmp_path / "whole.csv"
    assert run([*map(str, words[:-1]), str(whole)]) == 0
    assert table.read_bytes() == whole.read_bytes()


@pytest.mark.exhaustive
def test_jobs_of_a_study(slurm: Slurm, phantom_folder: Path, tmp_path: Path) -> None:
    """A job for each fold; the plain command then sums up, and has nothing to train."""
    options = ["--model", "resnet18", "--folds", "2", "--epochs", "1", "--size", "32"]

    def words(out: str) -> list[object]:
        return ["cv", "--data", phantom_folder, "--out", tmp_path / out, *options]

    said = slurm.array("0-1", *words("array"), "--job", "$SLURM_ARRAY_TASK_ID")
    results = [tmp_path / "array" / "resnet18" / f"fold{fold}" / "result.json" for fold in (0, 1)]
    assert all(path.exists() for path in results), said
    written = [path.stat().st_mtime_ns for path in results]
    assert run([str(word) for word in words("array")]) == 0
    assert [path.stat().st_mtime_ns for path in results] == written
    assert run([str(word) for word in words("plain")]) == 0
    array, plain = (tmp_path / out / "resnet18" / "out_of_fold.csv" for out in ("array", "plain"))
    assert array.read_bytes() == plain.read_bytes()
