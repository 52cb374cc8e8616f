"""Settings of nodes, DICOM files as bytes, what reports say, and free ports."""

import socket
import threading
from io import BytesIO
from pathlib import Path

import pytest
from highdicom.sr import srread
from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO

from hmc_fast.node.receiver import Receiver
from hmc_fast.node.settings import NodeSettings, Peer

CAPACITY = 3
OBJECT_BYTES = 2**20


def encoded(dataset: Dataset) -> bytes:
    file = DicomBytesIO()
    dataset.save_as(file, enforce_file_format=True)
    return file.getvalue()


def reported(report: Dataset) -> tuple[str, float]:
    """The film that a report is about, and its model output for malignant."""
    file = BytesIO()
    report.save_as(file)
    file.seek(0)
    (group,) = srread(file).content.get_image_measurement_groups()
    values = {m.name.value: float(m.value) for m in group.get_measurements()}
    return str(group.source_images[0].referenced_sop_instance_uid), values["p-malignant"]


def settings(queue: Path, **others: object) -> NodeSettings:
    given: dict[str, object] = {
        "ae": "NODE",
        "host": "127.0.0.1",
        "port": 0,
        "allowed": ("SENDER",),
        "peer": Peer("ARCHIVE", "127.0.0.1", 1),
        "queue": queue,
        "capacity": CAPACITY,
        "object_bytes": OBJECT_BYTES,
        "tls": None,
    }
    return NodeSettings(**(given | others))  # type: ignore[arg-type]


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def wait_until_gone(receiver: Receiver) -> None:
    """Until no association is left, for 15 s at most."""
    pause = threading.Event()
    for _ in range(150):
        if not receiver.server.active_associations:
            return
        pause.wait(0.1)
    pytest.fail("associations are left")
