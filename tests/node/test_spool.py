"""The queue: every film in one state, whatever happens, and never scored twice."""

import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from dicom_phantoms import NAME, PATIENT, phantom, phantom_file
from nodes import encoded
from pydicom.uid import RLELossless

from hmc_fast.data.pixels import picture_of
from hmc_fast.errors import UserError
from hmc_fast.node.spool import Spool

Offer = Callable[..., tuple[str, str]]


def write(folder: Path) -> None:
    (folder / "film.report.dcm").write_bytes(b"report")


def files(spool: Spool) -> set[str]:
    """All files of the queue but its lock."""
    return {
        str(path.relative_to(spool.folder))
        for path in spool.folder.rglob("*")
        if path.is_file() and path.name != "lock"
    }


def test_a_film_goes_from_state_to_state_and_leaves_no_pixels(spool: Spool, offer: Offer) -> None:
    admission, key = offer(1)
    assert admission == "taken"
    assert files(spool) == {f"received/{key}.0.dcm"}
    film = spool.take()
    assert film is not None
    assert film.key == key
    assert files(spool) == {f"received/{key}.1.dcm"}
    spool.finish(film, write, "picture")
    assert files(spool) == {f"scored/{key}/film.report.dcm", f"scored/{key}/digests.txt"}
    assert [path.read_bytes() for path in spool.results(key)] == [b"report"]
    spool.sent(key)
    assert files(spool) == {f"done/{key}"}
    assert (len(spool), spool.take(), spool.scored()) == (0, None, [])


def test_a_film_is_known_in_every_state(spool: Spool, offer: Offer) -> None:
    uid = "1.2.3.4.5"
    assert offer(1, SOPInstanceUID=uid)[0] == "taken"
    assert offer(1, SOPInstanceUID=uid)[0] == "known"
    film = spool.take()
    assert film is not None
    assert offer(1, SOPInstanceUID=uid)[0] == "known"
    spool.finish(film, write, "picture")
    assert offer(1, SOPInstanceUID=uid)[0] == "known"
    spool.sent(film.key)
    assert offer(1, SOPInstanceUID=uid, PatientID="corrected")[0] == "known"
    assert len(spool) == 0
    assert offer(1)[0] == "taken"  # other UID, the same pixels


def states(spool: Spool, picture: str) -> Iterator[None]:
    """The film that waits goes from state to state; a moment in each."""
    yield
    film = spool.take()
    assert film is not None
    yield
    spool.finish(film, write, picture)
    yield
    spool.sent(film.key)
    yield


def test_another_film_of_the_same_uid_is_refused_in_every_state(
    spool: Spool, offer: Offer, tmp_path: Path
) -> None:
    uid = "1.2.3.4.5"
    offer(1, SOPInstanceUID=uid)
    picture = picture_of(phantom_file(tmp_path / "film.dcm", 1))
    for _ in states(spool, str(picture)):
        before = files(spool)
        with pytest.raises(UserError, match="film before, which has other pixels") as refused:
            offer(2, SOPInstanceUID=uid)
        assert uid not in str(refused.value)
        assert files(spool) == before


def test_a_film_that_is_encoded_otherwise_is_known_in_every_state(
    spool: Spool, offer: Offer, tmp_path: Path
) -> None:
    film = phantom(1)
    offer(1, SOPInstanceUID=film.SOPInstanceUID)
    picture = picture_of(phantom_file(tmp_path / "film.dcm", 1))
    film.compress(RLELossless, generate_instance_uid=False)
    for _ in states(spool, str(picture)):
        assert spool.offer(encoded(film), film.SOPInstanceUID)[0].value == "known"
    assert len(spool) == 0


def test_a_film_that_failed_may_come_again_whatever_its_pixels(spool: Spool, offer: Offer) -> None:
    uid = "1.2.3.4.5"
    for seed in (1, 1, 2):
        admission, key = offer(seed, SOPInstanceUID=uid)
        assert admission == "taken"
        assert files(spool) == {f"received/{key}.0.dcm"}
        spool.fail(spool.take() or pytest.fail("none waits"), "a reason")
        assert files(spool) == {f"failed/{key}.txt"}


def test_the_oldest_film_comes_first_and_a_full_queue_takes_no_more(
    spool: Spool, offer: Offer
) -> None:
    keys = [offer(seed)[1] for seed in range(1, 4)]
    assert offer(4) == ("full", "")
    film = spool.take()
    assert film is not None
    assert film.key == keys[0]
    spool.finish(film, write, "picture")
    assert offer(4)[0] == "full"  # its results still wait
    spool.sent(film.key)
    assert offer(4)[0] == "taken"
    spool.put_back(spool.take() or pytest.fail("none waits"))
    assert (spool.take() or pytest.fail("none waits")).key == keys[2]


@pytest.mark.parametrize(
    ("state", "left"),
    [
        (("partial", "received"), {"received/{key}.0.dcm"}),
        (("received", "scored"), {"scored/{key}/film.report.dcm"}),
        (("received", "failed"), {"failed/{key}.txt"}),
        (("scored", "done"), {"done/{key}"}),
    ],
)
def test_after_a_kill_between_two_states_the_later_one_counts(
    spool: Spool, offer: Offer, state: tuple[str, str], left: set[str]
) -> None:
    """Both states of the film are made as a kill between two steps leaves them."""
    _, key = offer(1)
    received = spool.folder / "received" / f"{key}.0.dcm"
    copies = {
        "partial": (received, spool.folder / "partial" / "x.dcm"),
        "received": (received, received),
        "scored": (None, spool.folder / "scored" / key / "film.report.dcm"),
        "failed": (None, spool.folder / "failed" / f"{key}.txt"),
        "done": (None, spool.folder / "done" / key),
    }
    for name in state:
        source, target = copies[name]
        target.parent.mkdir(exist_ok=True)
        if source is None:
            target.write_bytes(b"")
        elif source != target:
            shutil.copy(source, target)
    if "received" not in state:
        received.unlink()
    (spool.folder / "scored" / ".half").mkdir()
    spool.close()
    again = Spool(spool.folder, 3)
    assert files(again) == {name.format(key=key) for name in left}
    again.close()


def test_a_film_that_ends_the_process_is_kept_and_does_not_stop_the_others(
    spool: Spool, offer: Offer
) -> None:
    """Each film is begun once more than the others before it comes again, for ever."""
    keys = [offer(seed)[1] for seed in (1, 2)]
    begun = [(spool.take() or pytest.fail("none waits")).key for _ in range(20)]
    assert begun == keys * 10
    assert files(spool) == {f"received/{key}.10.dcm" for key in keys}


def test_a_full_disk_keeps_the_film(spool: Spool, offer: Offer) -> None:
    _, key = offer(1)
    film = spool.take()
    assert film is not None

    def refuse(folder: Path) -> None:
        raise OSError(28, "No space left on device")

    with pytest.raises(UserError, match="No space left"):
        spool.finish(film, refuse, "picture")
    spool.put_back(film)
    assert files(spool) == {f"received/{key}.0.dcm"}


def test_a_clock_that_steps_back_loses_no_film_and_lets_none_wait_for_ever(
    spool: Spool, offer: Offer, tmp_path: Path
) -> None:
    """Films that came before the step look as if they came an hour later."""
    before = [offer(seed)[1] for seed in (1, 2)]
    for path in (spool.folder / "received").iterdir():
        later = path.stat().st_mtime + 3600
        os.utime(path, (later, later))
    after = offer(3)[1]
    first = spool.take()
    assert first is not None
    spool.put_back(first)
    assert {first.key, *(spool.take().key for _ in range(2))} == {*before, after}  # type: ignore[union-attr]  # films wait
    assert spool.take().key == first.key  # type: ignore[union-attr]  # as above


def test_a_queue_that_cannot_be_written_is_one_line(spool: Spool, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(UserError, match="cannot be used as a folder"):
        Spool(tmp_path / "file" / "queue", 3)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"Modality": "CT", "SOPClassUID": "1.2.3"}, "is no mammogram"),
        ({"NumberOfFrames": "40"}, "holds 40 frames"),
        ({"Rows": 20000}, "claims too many pixels"),
    ],
)
def test_what_is_no_film_is_refused_before_it_waits(
    spool: Spool, offer: Offer, change: dict[str, object], message: str
) -> None:
    with pytest.raises(UserError, match=message) as caught:
        offer(1, **change)
    assert str(spool.folder) not in str(caught.value)
    assert files(spool) == set()


def test_damaged_bytes_and_other_instances_are_refused(spool: Spool) -> None:
    good = encoded(phantom(1))
    for bad in (b"", b"x" * 1000, good[:400], good[:132] + b"\xff" * 200):
        with pytest.raises(UserError):
            spool.offer(bad, "1.2.3")
    with pytest.raises(UserError, match="another instance than the one announced"):
        spool.offer(good, "1.2.3")
    assert files(spool) == set()


def test_others_cannot_read_the_queue_and_names_tell_nothing_of_the_patient(
    spool: Spool, offer: Offer
) -> None:
    offer(1)
    assert spool.folder.stat().st_mode & 0o777 == 0o700
    names = " ".join(files(spool))
    assert PATIENT not in names
    assert NAME not in names
