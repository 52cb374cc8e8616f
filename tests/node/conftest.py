"""A spool, a receiver in this process, and ways to offer it films."""

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dicom_phantoms import phantom
from nodes import CAPACITY, encoded, settings
from pynetdicom import AE
from pynetdicom.association import Association

from hmc_fast.node.receiver import FILM_CLASSES, SYNTAXES, Receiver
from hmc_fast.node.spool import Spool


@pytest.fixture
def spool(tmp_path: Path) -> Iterator[Spool]:
    made = Spool(tmp_path / "queue", CAPACITY)
    yield made
    made.close()


@pytest.fixture
def offer(spool: Spool) -> Callable[..., tuple[str, str]]:
    """Offer a phantom; returns what became of it and its key."""

    def offered(seed: int, **attributes: object) -> tuple[str, str]:
        dataset = phantom(seed, **attributes)
        admission, key = spool.offer(encoded(dataset), dataset.SOPInstanceUID)
        return admission.value, key

    return offered


@pytest.fixture
def receiver(spool: Spool) -> Iterator[Receiver]:
    listening = Receiver(settings(spool.folder), spool, threading.Event())
    yield listening
    listening.close()


@pytest.fixture
def port(receiver: Receiver) -> int:
    return int(receiver.server.server_address[1])


@pytest.fixture
def associate(port: int) -> Iterator[Callable[..., Association]]:
    """Ask the receiver for an association."""
    made = []

    def ask(ae: str = "SENDER", called: str = "NODE", tls: object = None) -> Association:
        entity = AE(ae)
        entity.acse_timeout = entity.dimse_timeout = entity.network_timeout = 10
        entity.add_requested_context("1.2.840.10008.1.1")
        for film_class in FILM_CLASSES:
            entity.add_requested_context(film_class, SYNTAXES[:2])
        made.append(entity.associate("127.0.0.1", port, ae_title=called, tls_args=tls))
        return made[-1]

    yield ask
    for association in made:
        if association.is_established:
            association.release()
