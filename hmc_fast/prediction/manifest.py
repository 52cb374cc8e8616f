"""The frozen list of a prediction's films: who each is, and in which chunk it is scored.

A film is known by its SOPInstanceUID and its file's SHA-256. A chunk's id is the SHA-256 of what
its scores depend on (checkpoints, preprocessing, precision, rule) and of its films' keys, so that a
part file of that name can only hold these films' scores by these settings.
"""

import hashlib
import json
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, astuple, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock
from pydicom import dcmread

from hmc_fast.data import Film
from hmc_fast.data.dicom import is_dicom
from hmc_fast.data.identity import film_of
from hmc_fast.data.pixels import picture_of, same_picture
from hmc_fast.errors import UserError
from hmc_fast.files import make_folder, write_json
from hmc_fast.prediction.sources import Source
from hmc_fast.schema import STRICT, parse_json

FORMAT = 1
MANIFEST_FILE = "manifest.json"
LOCK_FILE = "manifest.lock"
CHUNK_FILMS = 64
"""A chunk takes whole patients until it has this many films: what a kill can cost."""


@dataclass(frozen=True)
class Entry:
    """One film of a manifest.

    ``uid`` is its SOPInstanceUID, empty where it has none; ``side`` and ``view`` are empty where
    nobody says. ``problem`` says why the film is not to be scored, and is empty where it is.
    """

    path: str
    uid: str
    sha256: str
    patient: str
    side: str
    view: str
    problem: str = ""

    @property
    def film(self) -> Film:
        path = Path(self.path)
        return Film(
            path.stem, self.patient, path, (), side=self.side or None, view=self.view or None
        )


@dataclass(frozen=True)
class Chunk:
    """Films that are scored together, a patient's always in one chunk."""

    id: str
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class Manifest:
    """``scoring`` is what scores depend on besides the films; ``stamps`` tell changed files."""

    scoring: dict[str, Any]
    stamps: tuple[tuple[str, int, int], ...]
    entries: tuple[Entry, ...]

    @cached_property
    def chunks(self) -> tuple[Chunk, ...]:
        patients: dict[str, list[Entry]] = {}
        for entry in self.entries:
            patients.setdefault(entry.patient, []).append(entry)
        chunks: list[Chunk] = []
        films: list[Entry] = []
        for members in patients.values():
            films += members
            if len(films) >= CHUNK_FILMS:
                chunks.append(self._chunk(films))
                films = []
        return (*chunks, self._chunk(films)) if films else tuple(chunks)

    def _chunk(self, entries: Sequence[Entry]) -> Chunk:
        described = json.dumps([self.scoring, [asdict(entry) for entry in entries]])
        return Chunk(hashlib.sha256(described.encode()).hexdigest()[:32], tuple(entries))


def make_manifest(
    sources: Sequence[Source],
    scoring: dict[str, Any],
    on_film: Callable[[], object] = lambda: None,
) -> Manifest:
    """Read every file once for its digest and its header.

    A film that cannot be read, that is there twice, or whose SOPInstanceUID another film has with
    other pixels, gets a problem.
    """
    stamps = _stamps(sources)
    entries = []
    for source in sources:
        entries.append(_examine(source))
        on_film()
    return Manifest(scoring, stamps, tuple(_without_doubles(entries)))


def frozen_manifest(
    folder: Path,
    sources: Sequence[Source],
    scoring: dict[str, Any],
    on_film: Callable[[], object] = lambda: None,
) -> Manifest:
    """The manifest of ``folder``, made by the first process that asks for it.

    Raises :class:`UserError` where the folder's manifest is of other settings or films, or where a
    file has changed since.
    """
    make_folder(folder)
    path = folder / MANIFEST_FILE
    with FileLock(folder / LOCK_FILE):
        if not path.exists():
            _check_empty(folder)
            made = make_manifest(sources, scoring, on_film)
            _store(path, made)
            return made
    manifest = _load(path)
    changed = [key for key, value in scoring.items() if manifest.scoring.get(key) != value]
    if changed:
        raise UserError(
            f"{folder}: belongs to a prediction with other {' and '.join(changed)}; give another "
            "--out, or remove the folder"
        )
    different = set(manifest.stamps) ^ set(_stamps(sources))
    if different:
        raise UserError(
            f"{folder}: belongs to a prediction of other films, of which {min(different)[0]} "
            "is new, gone or changed; give another --out, or remove the folder"
        )
    return manifest


def _check_empty(folder: Path) -> None:
    for path in folder.iterdir():
        mine = path.name == LOCK_FILE or path.name.startswith(".")  # what a kill has left
        if path.is_file() and not mine:
            raise UserError(
                f"{folder}: is for the parts of a prediction, and holds another file, {path.name}; "
                "give another --out"
            )


def file_digest(path: Path) -> str:
    """SHA-256 of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _stamps(sources: Iterable[Source]) -> tuple[tuple[str, int, int], ...]:
    """Path, bytes and time of change of every file, -1 where the system does not say."""
    stamps = []
    for source in sources:
        try:
            status = source.path.stat()
            stamps.append((str(source.path), status.st_size, status.st_mtime_ns))
        except OSError:
            stamps.append((str(source.path), -1, -1))
    return tuple(stamps)


def _examine(source: Source) -> Entry:
    film = film_of(source.path)
    entry = Entry(
        str(source.path),
        "",
        "",
        source.patient or film.patient_id,
        source.side or film.side or "",
        source.view or film.view or "",
    )
    try:
        if source.path.exists() and not source.path.is_file():
            return replace(entry, problem="is a folder, a pipe or a device, no file")
        return replace(entry, uid=_uid(source.path), sha256=file_digest(source.path))
    except OSError as error:
        return replace(entry, problem=f"cannot be read ({error.strerror})")


def _uid(path: Path) -> str:
    if not is_dicom(path):
        return ""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            header = dcmread(path, stop_before_pixels=True, specific_tags=["SOPInstanceUID"])
        return str(header.get("SOPInstanceUID") or "")
    except Exception:  # a damaged header can break the parser anywhere; reading pixels says how
        return ""


def _without_doubles(entries: Sequence[Entry]) -> list[Entry]:
    """The entries, with a problem for those that are not one film of their own."""
    by_uid: dict[str, list[Entry]] = {}
    by_digest: dict[str, Entry] = {}
    for entry in entries:
        if entry.uid:
            by_uid.setdefault(entry.uid, []).append(entry)
        if entry.sha256:
            by_digest.setdefault(entry.sha256, entry)
    problems: dict[str, str] = {}
    for films in by_uid.values():
        problems |= _doubles(films)
    for entry in entries:
        first = by_digest.get(entry.sha256, entry)
        if first is not entry:
            problems.setdefault(entry.path, f"is the same file as {first.path}")
    return [replace(e, problem=e.problem or problems.get(e.path, "")) for e in entries]


def _doubles(films: Sequence[Entry]) -> dict[str, str]:
    """Problems of films of one SOPInstanceUID: copies of the first, or other pixels."""
    first, *others = films
    if all(entry.sha256 == first.sha256 for entry in others):
        return {}
    if same_picture([picture_of(Path(entry.path)) for entry in films]):
        return {entry.path: f"is the same film as {first.path}" for entry in others}
    return {
        entry.path: f"its SOPInstanceUID {entry.uid} is also that of "
        f"{(others[0] if entry is first else first).path}, which has other pixels"
        for entry in films
    }


@dataclass(frozen=True)
class _Stored:
    """A manifest's file: stamps, entries' values, and the ids of the chunks that follow from them.

    Texts are escaped as in Python's literals, since names of files need not be Unicode.
    """

    format: int
    scoring: dict[str, Any]
    stamps: list[tuple[str, int, int]]
    films: list[list[str]]
    chunks: list[str]

    __pydantic_config__ = STRICT


def _store(path: Path, manifest: Manifest) -> None:
    stored = _Stored(
        FORMAT,
        manifest.scoring,
        [(_escaped(name), size, time) for name, size, time in manifest.stamps],
        [[_escaped(text) for text in astuple(entry)] for entry in manifest.entries],
        [chunk.id for chunk in manifest.chunks],
    )
    write_json(path, asdict(stored))


def _load(path: Path) -> Manifest:
    """Raises :class:`UserError` where the file is damaged, or its chunks are not its films'."""
    damaged = f"{path}: is damaged or of another release; remove its folder"
    try:
        stored = parse_json(_Stored, path.read_bytes(), str(path))
        manifest = Manifest(
            stored.scoring,
            tuple((_unescaped(name), size, time) for name, size, time in stored.stamps),
            tuple(Entry(*map(_unescaped, texts)) for texts in stored.films),
        )
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (TypeError, ValueError):
        raise UserError(damaged) from None
    if stored.format != FORMAT or [chunk.id for chunk in manifest.chunks] != stored.chunks:
        raise UserError(damaged)
    return manifest


def _escaped(text: str) -> str:
    return text.encode("unicode_escape").decode("ascii")


def _unescaped(text: str) -> str:
    return text.encode("ascii").decode("unicode_escape")
