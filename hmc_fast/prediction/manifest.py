"""The frozen list of a prediction's films: who each is, and in which chunk it is scored.

A film is known by its SOPInstanceUID and its file's SHA-256. A chunk's id is the SHA-256 of what
its scores depend on (checkpoints, preprocessing, precision, rule) and of its films' keys, so that a
part file of that name can only hold these films' scores by these settings.
"""

import hashlib
import json
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from filelock import FileLock
from pydicom import dcmread

from hmc_fast.data import Film, read_pixels
from hmc_fast.data.dicom import is_dicom
from hmc_fast.data.identity import film_of
from hmc_fast.data.pixels import pixel_digest
from hmc_fast.errors import UserError
from hmc_fast.files import make_folder, read_json, write_json
from hmc_fast.prediction.sources import Source

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
            made = make_manifest(sources, scoring, on_film)
            write_json(path, _to_json(made))
            return made
    manifest = _from_json(path, read_json(path))
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
    pixels = {_pixels(entry) for entry in films}
    if len(pixels) == 1 and None not in pixels:
        return {entry.path: f"is the same film as {first.path}" for entry in others}
    return {
        entry.path: f"its SOPInstanceUID {entry.uid} is also that of "
        f"{(others[0] if entry is first else first).path}, which has other pixels"
        for entry in films
    }


def _pixels(entry: Entry) -> str | None:
    try:
        return pixel_digest(read_pixels(Path(entry.path)))
    except UserError:
        return None


def _to_json(manifest: Manifest) -> dict[str, Any]:
    return {
        "format": FORMAT,
        "scoring": manifest.scoring,
        "stamps": manifest.stamps,
        "films": [list(asdict(entry).values()) for entry in manifest.entries],
        "chunks": [chunk.id for chunk in manifest.chunks],
    }


def _from_json(path: Path, values: Any) -> Manifest:
    try:
        manifest = Manifest(
            dict(values["scoring"]),
            tuple((str(name), int(size), int(time)) for name, size, time in values["stamps"]),
            tuple(Entry(*map(str, cells)) for cells in values["films"]),
        )
        if [chunk.id for chunk in manifest.chunks] != values["chunks"]:
            raise ValueError("its chunks")
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{path}: is damaged (problem with {error}); remove its folder and start over"
        ) from None
    return manifest
