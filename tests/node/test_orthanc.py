"""The node between a real archive's two ends: films from Orthanc, results to Orthanc."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from io import BytesIO
from pathlib import Path
from random import Random
from typing import Any

import pytest
from dicom_phantoms import NAME, PATIENT, STUDY, phantom, small_checkpoint
from nodes import encoded, free_port, reported
from pydicom import dcmread
from pydicom.dataset import Dataset

from hmc_fast.cli.app import run

pytestmark = pytest.mark.systems
READY_S = 60.0
"""In which a program starts, or a film's results arrive, on a machine that is busy."""
NO_PROXY = urllib.request.build_opener(urllib.request.ProxyHandler({}))
FILMS = 6


def wait_for(what: str, true: Callable[[], object]) -> None:
    deadline = time.monotonic() + READY_S
    while not true():
        assert time.monotonic() < deadline, what
        time.sleep(0.1)


class Orthanc:
    """An archive of its own in ``folder`` that may send to a node at ``node_port``."""

    def __init__(self, folder: Path, node_port: int) -> None:
        program = shutil.which("Orthanc")
        if program is None:
            pytest.skip("needs Debian's orthanc")
        self.port, http = free_port(), free_port()
        self._address = f"http://127.0.0.1:{http}"
        configuration = {
            "HttpPort": http,
            "RemoteAccessAllowed": False,
            "AuthenticationEnabled": False,
            "DicomPort": self.port,
            "DicomAet": "ARCHIVE",
            "DicomCheckCalledAet": True,
            "DicomModalities": {"node": ["NODE", "127.0.0.1", node_port]},
            "StorageDirectory": str(folder / "storage"),
            "IndexDirectory": str(folder / "storage"),
            "Plugins": [],
        }
        folder.mkdir()
        (folder / "orthanc.json").write_text(json.dumps(configuration))
        self._process = subprocess.Popen(
            [program, str(folder / "orthanc.json")],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        wait_for("Orthanc starts", self._answers)

    def close(self) -> None:
        self._process.terminate()
        self._process.wait(READY_S)

    def ask(self, path: str, body: bytes | None = None) -> Any:
        """GET, or POST of a body."""
        with NO_PROXY.open(f"{self._address}{path}", body, timeout=READY_S) as answer:
            return json.loads(answer.read())

    def add(self, dataset: Dataset) -> str:
        return str(self.ask("/instances", encoded(dataset))["ID"])

    def send(self, instance: str) -> bool:
        """To the node; whether it took the film."""
        try:
            self.ask("/modalities/node/store", instance.encode())
        except urllib.error.HTTPError:
            return False
        return True

    def instances(self, modality: str) -> list[Dataset]:
        query = {"Level": "Instance", "Query": {"Modality": modality}}
        found = self.ask("/tools/find", json.dumps(query).encode())
        files = [
            NO_PROXY.open(f"{self._address}/instances/{i}/file", timeout=READY_S).read()
            for i in found
        ]
        return [dcmread(BytesIO(file)) for file in files]

    def _answers(self) -> bool:
        assert self._process.poll() is None, "Orthanc ended"
        try:
            self.ask("/system")
        except OSError:
            return False
        return True


class RunningNode:
    """``serve dicom`` as a process of its own."""

    def __init__(self, folder: Path, port: int, archive: int, checkpoint: Path) -> None:
        arguments = [
            *("serve", "dicom", "--checkpoint", checkpoint, "--ae", "NODE", "--port", port),
            *("--allow", "ARCHIVE", "--send-to", f"ARCHIVE@127.0.0.1:{archive}"),
            *("--queue", folder / "queue"),
        ]
        self._log = folder / "node.log"
        self._log.touch()
        before = len(self.log())
        with self._log.open("a") as log:
            self._process = subprocess.Popen(
                [sys.executable, "-m", "hmc_fast", *map(str, arguments)], stderr=log
            )
        wait_for("the node starts", lambda: self._listens(before))

    def log(self) -> str:
        return self._log.read_text()

    def end(self, number: int) -> int:
        """The exit code after a signal."""
        self._process.send_signal(number)
        return self._process.wait(READY_S)

    def _listens(self, before: int) -> bool:
        assert self._process.poll() is None, self.log()
        return "NODE listens on 127.0.0.1" in self.log()[before:]


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return small_checkpoint(tmp_path_factory.mktemp("checkpoint") / "model.safetensors")


@pytest.fixture
def node_port() -> int:
    return free_port()


@pytest.fixture
def archive(tmp_path: Path, node_port: int) -> Iterator[Orthanc]:
    running = Orthanc(tmp_path / "orthanc", node_port)
    yield running
    running.close()


@pytest.fixture
def start(
    tmp_path: Path, node_port: int, archive: Orthanc, checkpoint: Path
) -> Iterator[Callable[[], RunningNode]]:
    nodes: list[RunningNode] = []

    def started() -> RunningNode:
        nodes.append(RunningNode(tmp_path, node_port, archive.port, checkpoint))
        return nodes[-1]

    yield started
    for node in nodes:
        node.end(signal.SIGKILL)


def predicted(
    films: list[Dataset], checkpoint: Path, folder: Path, capsys: pytest.CaptureFixture[str]
) -> dict[str, float]:
    """What ``predict`` says of malignancy, by SOPInstanceUID."""
    paths = {}
    for number, film in enumerate(films):
        paths[str(folder / f"{number}.dcm")] = str(film.SOPInstanceUID)
        film.save_as(folder / f"{number}.dcm", enforce_file_format=True)
    assert run(["predict", *paths, "--checkpoint", str(checkpoint), "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    return {paths[f["file"]]: f["probabilities"]["malignant"] for f in told["films"]}


def test_films_go_out_of_the_archive_and_results_come_back(
    archive: Orthanc,
    start: Callable[[], RunningNode],
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    node = start()
    film = phantom(1)
    blank = phantom(2)
    blank.PixelData = bytes(len(blank.PixelData))
    tomosynthesis = phantom(3, NumberOfFrames="2")
    sent = {name: archive.send(archive.add(data)) for name, data in
            (("film", film), ("blank", blank), ("tomosynthesis", tomosynthesis))}  # fmt: skip
    assert sent == {"film": True, "blank": True, "tomosynthesis": False}
    wait_for("results arrive", lambda: archive.instances("OT") and archive.instances("SR"))
    wait_for("the blank film is given up", lambda: "has no score: shows no picture" in node.log())
    (report,), (overlay,) = archive.instances("SR"), archive.instances("OT")
    probability = predicted([film], checkpoint, tmp_path, capsys)[str(film.SOPInstanceUID)]
    assert reported(report) == (film.SOPInstanceUID, round(probability, 6))
    for result in (report, overlay):
        assert result.StudyInstanceUID == STUDY
        assert result.PatientName == NAME
        assert "RESEARCH ONLY" in result.SeriesDescription
    assert overlay.SourceImageSequence[0].ReferencedSOPInstanceUID == film.SOPInstanceUID
    assert {len(archive.ask(f"/{level}")) for level in ("patients", "studies")} == {1}
    # Sent again, the film is known, and nothing comes twice.
    assert archive.send(archive.add(film))
    wait_for("the film is known", lambda: "known" in node.log())
    assert len(archive.instances("SR")) == len(archive.instances("OT")) == 1
    assert node.end(signal.SIGINT) == 0
    for secret in (NAME, "Mäuse", PATIENT, STUDY, str(film.SOPInstanceUID)):
        assert secret not in node.log()
    assert "Traceback" not in node.log()
    left = [p for p in (tmp_path / "queue").rglob("*") if p.is_file() and p.stat().st_size]
    assert sorted(p.parent.name for p in left) == ["done", "failed"]
    (done,) = (p for p in left if p.parent.name == "done")
    assert [len(bytes.fromhex(digest)) for digest in done.read_text().split()] == [32, 32]


@pytest.mark.parametrize(
    "kills", [2, pytest.param(10, marks=pytest.mark.exhaustive)], ids=["some", "ten"]
)
def test_a_killed_node_gives_every_film_exactly_one_report(
    kills: int,
    archive: Orthanc,
    start: Callable[[], RunningNode],
    checkpoint: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Films are offered until they are taken, as an archive does; kills come at drawn moments."""
    films = [phantom(seed) for seed in range(1, FILMS * max(1, kills // 3) + 1)]
    waiting = [archive.add(film) for film in films]
    random = Random(kills)
    for _ in range(kills):
        node = start()
        share = -(-len(films) // kills)
        for instance in waiting[:share]:
            if archive.send(instance):
                waiting.remove(instance)
        time.sleep(random.uniform(0, 0.6))
        node.end(signal.SIGKILL)
    node = start()
    for instance in waiting:
        assert archive.send(instance)
    wait_for("all reports arrive", lambda: len(archive.instances("SR")) == len(films))
    wait_for("all overlays arrive", lambda: len(archive.instances("OT")) == len(films))
    done = tmp_path / "queue" / "done"
    wait_for("the queue is done", lambda: len(os.listdir(done)) == len(films))  # noqa: PTH208  # names
    told = predicted(films, checkpoint, tmp_path, capsys)
    reports = [reported(report) for report in archive.instances("SR")]
    assert sorted(reports) == sorted((uid, round(p, 6)) for uid, p in told.items())
    assert len({report[0] for report in reports}) == len(films)
    assert node.end(signal.SIGTERM) == 0
