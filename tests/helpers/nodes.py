"""Settings of nodes, DICOM files as bytes, and free ports."""

import socket
from pathlib import Path

from pydicom.dataset import Dataset
from pydicom.filebase import DicomBytesIO

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
