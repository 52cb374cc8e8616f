"""Films and results that wait, as files that are renamed from state to state.

A kill at any moment leaves each film in one state, or in two of which the later one counts::

    partial/    being received; emptied at the start
    received/   KEY.ATTEMPTS.dcm: to be scored; ATTEMPTS counts the times that it was begun
    scored/     KEY/: results that wait to be sent, and digests of the film's pixels
    done/       KEY: the results have arrived; the digests are kept
    failed/     KEY.txt: why there are none

KEY is a digest of the SOPInstanceUID. A film that is sent again is not scored again, and another
film of the same UID is refused; one that failed may come again, whatever its pixels.
Films and results are deleted as soon as they are not needed any more.
"""

import hashlib
import os
import shutil
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from enum import Enum
from pathlib import Path
from tempfile import mkstemp
from typing import NamedTuple

from filelock import FileLock, Timeout
from pydicom import dcmread

from hmc_fast.data.dicom import dicom_header
from hmc_fast.data.pixels import picture_of, same_picture
from hmc_fast.errors import UserError
from hmc_fast.files import make_folder, write_folder, write_text

PARTIAL, RECEIVED, SCORED, DONE, FAILED = "partial", "received", "scored", "done", "failed"
STATES = (PARTIAL, RECEIVED, SCORED, DONE, FAILED)
LOCK_FILE = "lock"
PIXELS = 0x7FE00010
DIGESTS_FILE = "digests.txt"
OWNER_ALONE = 0o700
"""Films and results are patient data."""


class Admission(Enum):
    """What became of a film that was offered."""

    TAKEN = "taken"
    KNOWN = "known"
    FULL = "full"


class Waiting(NamedTuple):
    """A film that is to be scored."""

    key: str
    path: Path


class Spool:
    """The queue in ``folder``, for one process at a time.

    Raises :class:`UserError` where the folder cannot be used, or another process uses it.
    """

    def __init__(self, folder: Path, capacity: int) -> None:
        self.folder = folder
        self.capacity = capacity
        self._changing = threading.Lock()
        self._arriving = 0
        if not folder.exists():
            make_folder(folder).chmod(OWNER_ALONE)
        for state in STATES:
            make_folder(folder / state)
        self._owner = FileLock(folder / LOCK_FILE)
        try:
            self._owner.acquire(timeout=0)
        except Timeout:
            raise UserError(f"--queue {folder}: another node uses it") from None
        self._recover()

    def close(self) -> None:
        """Let another process have the folder."""
        self._owner.release()

    def __len__(self) -> int:
        """Films that wait, those whose results wait included."""
        return len(list(self._received())) + len(self.scored())

    def offer(self, encoded: bytes, uid: str) -> tuple[Admission, str]:
        """Take a film as a DICOM file's bytes; returns what became of it, and its key.

        The film is on the disk when this returns.

        Raises:
            UserError: it is no mammogram, damaged, not the instance ``uid``, or that came before
                with other pixels.
            OSError: the disk refuses.
        """
        with self._place() as free:
            if not free:
                return Admission.FULL, ""
            partial = self._write(encoded)
            try:
                dicom_header(partial)
                given, pixels = instance_of(partial)
                if not uid or given != uid:
                    raise UserError("is another instance than the one announced")
                key = hashlib.sha256(uid.encode()).hexdigest()
                with self._changing:
                    if self._state_of(key) in (None, FAILED):
                        self._rename(partial, self.folder / RECEIVED / f"{key}.0.dcm")
                        (self.folder / FAILED / f"{key}.txt").unlink(missing_ok=True)
                        return Admission.TAKEN, key
                    if self._is_known_as(key, partial, pixels):
                        return Admission.KNOWN, key
                raise UserError(
                    "its SOPInstanceUID is also that of a film before, which has other pixels"
                )
            except UserError as error:
                raise UserError(str(error).removeprefix(f"{partial}: ")) from None
            finally:
                partial.unlink(missing_ok=True)

    def take(self) -> Waiting | None:
        """The film that was begun the least often, then the oldest; None where none waits.

        Its attempt is counted before it is begun: a film that ends the process, each time that it
        is scored, does not stop the others, and one that a kill has hit by chance is not lost.
        """
        with self._changing:
            films = [(_name_of(p)[1], p.stat().st_mtime_ns, p) for p in self._received()]
            if not films:
                return None
            attempts, _, path = min(films)
            key = _name_of(path)[0]
            return Waiting(key, self._rename(path, path.with_name(f"{key}.{attempts + 1}.dcm")))

    def put_back(self, film: Waiting) -> None:
        """A film that could not be finished for a reason of the machine's, its attempt not counted.

        It is taken after the others, also where the clock has been set back.
        """
        key, attempts = _name_of(film.path)
        with self._changing:
            last = max(path.stat().st_mtime_ns for path in self._received())
            stamp = max(time.time_ns(), last + 1)
            waiting = self._rename(film.path, film.path.with_name(f"{key}.{attempts - 1}.dcm"))
            os.utime(waiting, ns=(stamp, stamp))

    def finish(self, film: Waiting, write: Callable[[Path], object], picture: str) -> None:
        """Keep the results that ``write`` puts into a folder, and forget the film.

        ``picture`` is what :func:`hmc_fast.data.pixels.picture_of` says of it.

        Raises :class:`UserError` where the disk refuses.
        """
        digests = f"{instance_of(film.path)[1]} {picture}\n"

        def fill(folder: Path) -> None:
            write(folder)
            write_text(folder / DIGESTS_FILE, digests)

        write_folder(self.folder / SCORED / film.key, fill)
        _sync(self.folder / SCORED)
        self._forget(film)

    def fail(self, film: Waiting, reason: str) -> None:
        """Forget a film without results, but not that it was here."""
        write_text(self.folder / FAILED / f"{film.key}.txt", f"{reason}\n")
        self._forget(film)

    def scored(self) -> list[str]:
        """Keys of films whose results wait to be sent, by age."""
        folders = [p for p in (self.folder / SCORED).iterdir() if not p.name.startswith(".")]
        return [p.name for p in sorted(folders, key=lambda p: p.stat().st_mtime_ns)]

    def results(self, key: str) -> list[Path]:
        """The results of a scored film."""
        return sorted((self.folder / SCORED / key).glob("*.dcm"))

    def sent(self, key: str) -> None:
        """Forget results that have arrived, but not that they have."""
        self._rename(self.folder / SCORED / key / DIGESTS_FILE, self.folder / DONE / key)
        shutil.rmtree(self.folder / SCORED / key)

    @contextmanager
    def _place(self) -> Iterator[bool]:
        """Whether there is a place for one more film; it is kept until the film has come."""
        with self._changing:
            free = len(self) + self._arriving < self.capacity
            self._arriving += free
        try:
            yield free
        finally:
            with self._changing:
                self._arriving -= free

    def _write(self, encoded: bytes) -> Path:
        descriptor, name = mkstemp(dir=self.folder / PARTIAL, suffix=".dcm")
        try:
            with os.fdopen(descriptor, "wb") as file:
                file.write(encoded)
                file.flush()
                os.fsync(descriptor)
        except OSError:
            Path(name).unlink()
            raise
        return Path(name)

    def _rename(self, path: Path, target: Path) -> Path:
        path.rename(target)
        _sync(target.parent)
        return target

    def _forget(self, film: Waiting) -> None:
        with self._changing:
            film.path.unlink()

    def _is_known_as(self, key: str, film: Path, pixels: str) -> bool:
        """Whether ``film``, with the encoded ``pixels``, is the one that waits or has results.

        It is decoded where it was encoded otherwise before.
        """
        for path in (self.folder / RECEIVED).glob(f"{key}.*.dcm"):
            if instance_of(path)[1] == pixels:
                return True
            return same_picture([picture_of(path), picture_of(film)])
        for path in (self.folder / SCORED / key / DIGESTS_FILE, self.folder / DONE / key):
            with suppress(OSError):
                encoded, picture = path.read_text(encoding="utf-8").split()
                return encoded == pixels or same_picture([picture, picture_of(film)])
        return False

    def _received(self) -> Iterator[Path]:
        return (self.folder / RECEIVED).glob("*.dcm")

    def _state_of(self, key: str) -> str | None:
        """The latest state of a film."""
        for state, pattern in ((DONE, key), (FAILED, f"{key}.txt"), (SCORED, key)):
            if (self.folder / state / pattern).exists():
                return state
        return RECEIVED if any((self.folder / RECEIVED).glob(f"{key}.*.dcm")) else None

    def _recover(self) -> None:
        """Drop what a kill has left behind: half-written files, and what a later state ends."""
        for path in (self.folder / PARTIAL).iterdir():
            path.unlink()
        for state in (SCORED, FAILED):
            for path in (self.folder / state).glob(".*"):
                shutil.rmtree(path) if path.is_dir() else path.unlink()
        for path in list(self._received()):
            if self._state_of(_name_of(path)[0]) != RECEIVED:
                path.unlink()
        for key in self.scored():
            if self._state_of(key) != SCORED:
                shutil.rmtree(self.folder / SCORED / key)


def instance_of(path: Path) -> tuple[str, str]:
    """The SOPInstanceUID, and a digest of the pixels as they are encoded.

    Raises :class:`UserError` where the file cannot be read or has no pixels.
    """
    try:
        film = dcmread(path, specific_tags=["SOPInstanceUID", "PixelData"])
        pixels = film.get_item(PIXELS)
        uid = str(film.get("SOPInstanceUID") or "")
    except Exception as error:  # a damaged file can break the parser anywhere
        raise UserError(f"{path}: is damaged ({type(error).__name__})") from None
    if pixels is None or not isinstance(pixels.value, bytes):
        raise UserError(f"{path}: has no pixels (no PixelData element)")
    return uid, hashlib.sha256(pixels.value).hexdigest()


def _name_of(path: Path) -> tuple[str, int]:
    """Key and attempts of a received film."""
    key, _, attempts = path.stem.partition(".")
    return key, int(attempts)


def _sync(folder: Path) -> None:
    """Names on the disk too, where a file system does that."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
