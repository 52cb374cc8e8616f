"""Results on their way to an archive that is away, refuses, or takes them."""

from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from nodes import settings
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ComprehensiveSRStorage, ExplicitVRLittleEndian
from pynetdicom import AE, evt
from pynetdicom.events import Event

from hmc_fast.node.sender import RESULT_CLASSES, Sender
from hmc_fast.node.settings import Peer
from hmc_fast.node.spool import Spool


class Archive:
    """Answers C-STORE with ``status``; keeps what it took, by UID, and counts what came."""

    def __init__(self, port: int = 0) -> None:
        self.status, self.taken, self.came = 0, dict[str, bytes](), 0
        entity = AE("ARCHIVE")
        for result_class in RESULT_CLASSES:
            entity.add_supported_context(result_class)
        handlers = [(evt.EVT_C_STORE, self._store)]
        self.server = entity.start_server(("127.0.0.1", port), block=False, evt_handlers=handlers)
        self.peer = Peer("ARCHIVE", "127.0.0.1", self.server.server_address[1])

    def _store(self, event: Event) -> int:
        self.came += 1
        if self.status in (0, 0xB000):
            self.taken[str(event.request.AffectedSOPInstanceUID)] = event.encoded_dataset(False)
        return self.status


@pytest.fixture
def archive() -> Iterator[Archive]:
    listening = Archive()
    yield listening
    listening.server.shutdown()


def result(folder: Path) -> None:
    dataset = Dataset()
    dataset.SOPClassUID, dataset.SOPInstanceUID = ComprehensiveSRStorage, "1.2.3.4"
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.save_as(folder / "film.report.dcm", enforce_file_format=True)


@pytest.fixture
def scored(spool: Spool, offer: Callable[..., tuple[str, str]]) -> str:
    """The key of a film whose results wait."""
    _, key = offer(1)
    film = spool.take()
    assert film is not None
    spool.finish(film, result, "picture")
    return key


def test_results_wait_until_the_archive_takes_them(
    archive: Archive, spool: Spool, scored: str
) -> None:
    sender = Sender(settings(spool.folder, peer=archive.peer), spool)
    for refusal in (0xA700, 0xC000, 0x0122):
        archive.status = refusal
        assert not sender.send_all()
        assert spool.scored() == [scored]
    archive.status = 0xB000  # stored with a warning
    assert sender.send_all()
    assert spool.scored() == []
    assert list(archive.taken) == ["1.2.3.4"]
    came = archive.came
    assert sender.send_all()
    assert archive.came == came


def test_an_archive_that_is_away_or_knows_nobody_is_asked_again(
    archive: Archive, spool: Spool, scored: str
) -> None:
    nowhere = archive.peer._replace(port=1)
    assert not Sender(settings(spool.folder, peer=nowhere), spool).send_all()
    archive.server.ae.require_calling_aet = ["OTHER"]
    sender = Sender(settings(spool.folder, peer=archive.peer), spool)
    assert not sender.send_all()
    assert spool.scored() == [scored]
    archive.server.ae.require_calling_aet = []
    assert sender.send_all()
    assert spool.scored() == []


def test_results_sent_again_after_a_kill_are_the_same_instance(
    archive: Archive, spool: Spool, scored: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kill comes after the archive has answered and before that is written down."""
    sender = Sender(settings(spool.folder, peer=archive.peer), spool)
    with monkeypatch.context() as killed:
        killed.setattr(spool, "sent", lambda key: None)
        assert sender.send_all()
    before = dict(archive.taken)
    assert sender.send_all()
    assert archive.came == 2
    assert archive.taken == before
    assert spool.scored() == []
