"""Hostile PDUs: whatever comes, the node takes the next film."""

import os
import socket
import struct
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from dicom_phantoms import phantom
from hypothesis import HealthCheck, Phase, given, seed
from hypothesis import settings as fuzz_settings
from hypothesis import strategies as st
from mutations import damaged_bytes
from nodes import wait_until_gone
from pynetdicom import AE, evt
from pynetdicom.association import Association

from hmc_fast.node import guard
from hmc_fast.node.receiver import Receiver
from hmc_fast.node.spool import Spool

SEED = 20261126
ANSWER_S = 0.2
CLIENTS = 32
QUICK, THOROUGH = 24, 1000


@pytest.fixture
def session(port: int) -> list[bytes]:
    """The PDUs of a client that stores a film: request, data, release."""
    sent: list[bytes] = []
    entity = AE("SENDER")
    film = phantom(99)
    entity.add_requested_context(film.SOPClassUID)
    handlers = [(evt.EVT_PDU_SENT, lambda event: sent.append(event.pdu.encode()))]
    association = entity.associate("127.0.0.1", port, ae_title="NODE", evt_handlers=handlers)
    assert association.send_c_store(film).Status == 0
    association.release()
    return sent


def drawn_pdus(session: list[bytes], count: int) -> list[list[bytes]]:
    """What each of ``count`` hostile connections sends: at least one damaged or invented PDU."""
    request, *others = session
    invented = st.builds(
        lambda kind, length, body: struct.pack(">BBL", kind, 0, length or len(body)) + body,
        st.integers(0, 255) | st.integers(1, 7),
        st.sampled_from([0, 0, 0, 1, 2**17, 2**31, 2**32 - 1]),
        st.binary(max_size=300),
    )

    def damaged(*pdus: bytes) -> st.SearchStrategy[bytes]:
        return damaged_bytes(pdus).filter(lambda pdu: pdu not in session)

    hostile = damaged(*others) | invented | st.binary(min_size=1, max_size=300)
    connections = st.one_of(
        st.tuples(damaged(request)),
        st.tuples(hostile),
        st.tuples(st.just(request), hostile),
        st.tuples(st.just(request), st.just(others[0]), hostile, hostile),
        st.tuples(st.just(request), *map(damaged, others)),
    )
    drawn: list[list[bytes]] = []

    @seed(SEED)
    @fuzz_settings(
        max_examples=count,
        database=None,
        deadline=None,
        phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )
    @given(connections)
    def draw(pdus: tuple[bytes, ...]) -> None:
        drawn.append(list(pdus))

    draw()
    return drawn


def send(port: int, pdus: list[bytes]) -> None:
    """Send them in one go and hear what comes for a moment."""
    try:
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.sendall(b"".join(pdus))
            connection.settimeout(ANSWER_S)
            while connection.recv(2**16):
                pass
    except OSError:  # dropped, or nothing more is said
        pass


def open_files() -> int:
    return len(os.listdir("/proc/self/fd"))  # noqa: PTH208  # no paths are wanted


@pytest.mark.parametrize(
    "count", [QUICK, pytest.param(THOROUGH, marks=pytest.mark.systems)], ids=["quick", "thorough"]
)
def test_hostile_pdus_crash_nothing(
    count: int,
    spool: Spool,
    session: list[bytes],
    receiver: Receiver,
    port: int,
    associate: Callable[..., Association],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    ended: list[str] = []
    monkeypatch.setattr(threading, "excepthook", lambda what: ended.append(what.exc_type.__name__))
    # All are heard: none is turned away because of the others.
    monkeypatch.setattr(guard, "CONNECTIONS", count)
    monkeypatch.setattr(receiver.server, "_connecting", threading.Semaphore(count))
    receiver.server.ae.maximum_associations = count
    receiver.server.ae.acse_timeout = receiver.server.ae.network_timeout = 1
    wait_until_gone(receiver)
    files, threads = open_files(), threading.active_count()
    connections = drawn_pdus(session, count)
    with ThreadPoolExecutor(CLIENTS) as clients:
        list(clients.map(lambda pdus: send(port, pdus), connections))
    assert sum(pdu not in session for pdus in connections for pdu in pdus) >= count
    wait_until_gone(receiver)
    assert set(ended) <= {"InvalidEventError"}  # pynetdicom's, of its own state machine
    assert threading.active_count() <= threads
    assert open_files() <= files + 2
    receiver.server.ae.acse_timeout = receiver.server.ae.network_timeout = 10
    association = associate()
    assert association.send_c_echo().Status == 0
    while (film := spool.take()) is not None:
        spool.fail(film, "made room")
    assert association.send_c_store(phantom(98)).Status == 0
    association.release()
    assert not list((spool.folder / "partial").iterdir())
