"""Settings of nodes, DICOM files as bytes, and free ports."""

import socket
import threading
from pathlib import Path

import pytest
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
