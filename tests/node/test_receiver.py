"""The listening side against well-behaved clients and hostile ones."""

import logging
import shutil
import socket
import ssl
import struct
import subprocess
import threading
from collections.abc import Callable
from pathlib import Path

import pytest
from dicom_phantoms import NAME, PATIENT, phantom, phantom_file
from full_disk import room_for
from nodes import OBJECT_BYTES, encoded, settings, wait_until_gone
from pydicom import dcmread
from pydicom.dataset import Dataset
from pynetdicom.association import Association

from hmc_fast.node import guard
from hmc_fast.node.log import LOGGER
from hmc_fast.node.receiver import Receiver
from hmc_fast.node.settings import tls_of
from hmc_fast.node.spool import Spool

Associate = Callable[..., Association]
FOR_PROCESSING = "1.2.840.10008.5.1.4.1.1.1.2.1"


@pytest.fixture
def lines(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> Callable[[], str]:
    """What the node has said so far."""
    monkeypatch.setattr(LOGGER, "propagate", True)
    caplog.set_level(logging.INFO, logger=LOGGER.name)
    return lambda: "\n".join(record.getMessage() for record in caplog.records)


def status(association: Association, dataset: Dataset) -> int:
    return int(association.send_c_store(dataset).Status)


def program(name: str) -> str:
    found = shutil.which(name)
    if found is None:
        pytest.skip(f"needs {name} of Debian's dcmtk")
    return found


def test_films_are_taken_once_until_the_queue_is_full(
    associate: Associate, spool: Spool, lines: Callable[[], str]
) -> None:
    association = associate()
    assert association.send_c_echo().Status == 0
    films = [phantom(seed) for seed in range(1, 5)]
    assert [status(association, film) for film in films] == [0, 0, 0, 0xA700]
    assert len(spool) == 3
    assert status(association, films[0]) == 0xA700  # nothing is read while there is no place
    film = spool.take()
    assert film is not None
    assert dcmread(film.path).pixel_array.tolist() == films[0].pixel_array.tolist()
    spool.finish(film, lambda folder: None, "picture")
    spool.sent(film.key)
    assert status(association, films[0]) == 0
    assert len(spool) == 2
    for secret in (NAME, "Mäuse", PATIENT, *(str(f.SOPInstanceUID) for f in films)):
        assert secret not in lines()
    assert "known" in lines()


def test_another_film_of_the_same_uid_is_refused_and_said(
    associate: Associate, spool: Spool, lines: Callable[[], str]
) -> None:
    association, film = associate(), phantom(1)
    other = phantom(2, SOPInstanceUID=film.SOPInstanceUID)
    assert [status(association, each) for each in (film, other, film)] == [0, 0xC000, 0]
    assert len(spool) == 1
    assert "its SOPInstanceUID is also that of a film before, which has other pixels" in lines()
    assert str(film.SOPInstanceUID) not in lines()


def test_a_film_for_which_the_disk_has_no_room_is_refused_and_can_come_again(
    associate: Associate, spool: Spool, lines: Callable[[], str]
) -> None:
    association, film = associate(), phantom(1)
    with room_for(1000):
        assert status(association, film) == 0xA700
    assert not [path for path in spool.folder.rglob("*") if path.suffix == ".dcm"]
    assert "could not store a film" in lines()
    assert status(association, film) == 0
    assert len(spool) == 1


def test_who_is_not_on_the_list_stores_nothing(
    associate: Associate, lines: Callable[[], str], spool: Spool
) -> None:
    assert associate("STRANGER").is_rejected
    assert associate("SENDER", called="OTHER").is_rejected
    assert "rejected an association of STRANGER" in lines()
    assert len(spool) == 0


def test_an_image_for_processing_is_not_negotiated(port: int) -> None:
    from pynetdicom import AE

    entity = AE("SENDER")
    entity.add_requested_context(FOR_PROCESSING)
    entity.add_requested_context("1.2.840.10008.1.1")
    association = entity.associate("127.0.0.1", port, ae_title="NODE")
    assert [c.abstract_syntax for c in association.accepted_contexts] == ["1.2.840.10008.1.1"]
    association.release()


def test_what_is_no_film_is_refused_and_the_next_film_is_taken(
    associate: Associate, spool: Spool, lines: Callable[[], str]
) -> None:
    association = associate()
    no_pixels = phantom(1)
    del no_pixels.PixelData
    frames = phantom(1, NumberOfFrames="40")
    assert [status(association, bad) for bad in (no_pixels, frames)] == [0xC000, 0xC000]
    assert status(association, phantom(1)) == 0
    assert len(spool) == 1
    assert "holds 40 frames" in lines()


def test_dcmtk_can_echo_and_store(port: int, spool: Spool, tmp_path: Path) -> None:
    film = phantom_file(tmp_path / "film.dcm", 1)
    address = ["-aec", "NODE", "127.0.0.1", str(port)]
    for ae, code in (("SENDER", 0), ("STRANGER", 1)):
        done = [
            subprocess.run([program(name), "-aet", ae, *address, *files], check=False).returncode
            for name, files in (("echoscu", []), ("storescu", [str(film)]))
        ]
        assert [bool(returned) for returned in done] == [bool(code)] * 2
    assert len(spool) == 1


def test_an_object_over_the_limit_is_dropped_while_it_comes(
    associate: Associate, spool: Spool, lines: Callable[[], str]
) -> None:
    large = phantom(1)
    large.add_new(0x00091001, "OB", bytes(2 * OBJECT_BYTES))
    association = associate()
    assert "Status" not in association.send_c_store(large)
    assert f"a message has more than {OBJECT_BYTES} bytes" in lines()
    assert status(associate(), phantom(1)) == 0
    assert len(spool) == 1


def test_the_limit_is_for_each_object_of_an_association(associate: Associate) -> None:
    association = associate()
    film = phantom(1)
    film.add_new(0x00091001, "OB", bytes(OBJECT_BYTES // 2))
    assert [status(association, film) for _ in range(5)] == [0] * 5


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """A receiver that is made after this waits a second for what a peer owes, and has less room."""
    monkeypatch.setattr(guard, "CONNECTIONS", 4)
    monkeypatch.setattr("hmc_fast.node.receiver.REQUEST_S", 1.0)


def test_a_pdu_of_absurd_length_is_dropped_unread(
    impatient: None, port: int, receiver: Receiver, lines: Callable[[], str]
) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(struct.pack(">BBL", 1, 0, 2**32 - 1))
        assert connection.recv(100) == b""
    assert "a PDU of 4294967295 bytes was announced" in lines()
    wait_until_gone(receiver)


def test_a_slow_pdu_is_dropped(
    impatient: None,
    port: int,
    receiver: Receiver,
    lines: Callable[[], str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(guard, "PDU_S", 0.3)
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(struct.pack(">BBL", 1, 0, 100) + b"x")
        assert connection.recv(100) == b""
    assert "a PDU took too long" in lines()
    wait_until_gone(receiver)


def test_more_connections_than_may_be_are_closed_at_once(
    impatient: None,
    port: int,
    receiver: Receiver,
    associate: Associate,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    kept = [socket.create_connection(("127.0.0.1", port)) for _ in range(guard.CONNECTIONS)]
    threading.Event().wait(0.5)
    with socket.create_connection(("127.0.0.1", port), timeout=10) as one_more:
        assert one_more.recv(1) == b""
    for connection in kept:
        connection.close()
    wait_until_gone(receiver)
    assert associate().is_established


@pytest.fixture(scope="module")
def certificates(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Path, Path]]:
    """Certificate, key and authority of the node and a client, and of a stranger."""
    if shutil.which("openssl") is None:
        pytest.skip("needs openssl")
    folder = tmp_path_factory.mktemp("tls")

    def openssl(*arguments: object) -> None:
        command = ["openssl", *map(str, arguments)]
        subprocess.run(command, check=True, capture_output=True)

    def authority(name: str) -> tuple[Path, Path]:
        certificate, key = folder / f"{name}.pem", folder / f"{name}.key"
        request = ("req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
        openssl(*request, "-keyout", key, "-out", certificate, "-subj", f"/CN={name}", "-days", 2)
        return certificate, key

    made = {}
    extensions = folder / "extensions"
    extensions.write_text("subjectAltName=IP:127.0.0.1,DNS:localhost\n")
    for owner, name in (("ours", "peer"), ("theirs", "stranger")):
        root, root_key = authority(owner)
        key, request = folder / f"{name}.key", folder / f"{name}.csr"
        new = ("req", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes")
        openssl(*new, "-keyout", key, "-out", request, "-subj", f"/CN={name}")
        certificate = folder / f"{name}.pem"
        signed = ("x509", "-req", "-in", request, "-CA", root, "-CAkey", root_key, "-days", 2)
        openssl(*signed, "-extfile", extensions, "-CAcreateserial", "-out", certificate)
        made[name] = (certificate, key, root)
    return made


def test_tls_takes_peers_with_a_certificate_alone(
    certificates: dict[str, tuple[Path, Path, Path]],
    spool: Spool,
    lines: Callable[[], str],
) -> None:
    from pynetdicom import AE

    tls = tls_of(*certificates["peer"])
    assert tls is not None
    receiver = Receiver(settings(spool.folder, tls=tls), spool, threading.Event())
    port = receiver.server.server_address[1]
    entity = AE("SENDER")
    entity.acse_timeout = entity.connection_timeout = 5
    entity.add_requested_context(phantom(1).SOPClassUID)

    def ask(context: ssl.SSLContext | None) -> Association:
        arguments = (context, "127.0.0.1") if context else None
        return entity.associate("127.0.0.1", port, ae_title="NODE", tls_args=arguments)

    try:
        good = ask(tls.client)
        assert status(good, phantom(1)) == 0
        good.release()
        stranger = ssl.create_default_context(cafile=certificates["peer"][2])
        assert not ask(stranger).is_established  # it shows no certificate
        stranger.load_cert_chain(*certificates["stranger"][:2])
        assert not ask(stranger).is_established  # another authority signed it
        assert not ask(None).is_established
        assert "dropped: no TLS" in lines()
        assert len(spool) == 1
    finally:
        receiver.close()


def test_a_message_that_cannot_be_parsed_is_refused(associate: Associate, spool: Spool) -> None:
    """The data set's bytes are noise; the command before it is in order."""
    association = associate()
    film = phantom(1)
    noise = encoded(film)[-5000:]
    film.PixelData = b""
    film.add_new(0x7FE10010, "OB", noise)
    film.SOPInstanceUID = "1.2.3"
    assert status(association, film) == 0xC000
    assert len(spool) == 0
