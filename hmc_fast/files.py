"""Writing files so that nothing is ever half-written."""

import json
import os
import shutil
import stat
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from pathlib import Path
from tempfile import mkdtemp, mkstemp
from typing import Any

from hmc_fast.errors import UserError

NAME_START = 60
"""Characters of a file's name that its temporary one begins with; names end at 255 bytes."""


_made: ContextVar[list[Path] | None] = ContextVar("made", default=None)


@contextmanager
def no_empty_folders() -> Iterator[None]:
    """Where the block fails, the folders that it made and left empty go with it."""
    made: list[Path] = []
    token = _made.set(made)
    try:
        yield
    except BaseException:
        for folder in reversed(made):
            with suppress(OSError):  # not empty: somebody needs it
                folder.rmdir()
        raise
    finally:
        _made.reset(token)


def make_folder(path: Path) -> Path:
    """Create ``path`` and its parents; raises :class:`UserError` where that is not possible."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        if (made := _made.get()) is not None:
            made += reversed(missing)
        if not os.access(path, os.W_OK):
            raise PermissionError(13, "no permission to write")
    except OSError as error:
        raise UserError(f"{path}: cannot be used as a folder ({error.strerror})") from None
    return path


def write_atomically(path: Path, write: Callable[[Path], object]) -> None:
    """Let ``write`` fill a temporary file beside ``path``, then rename it.

    The temporary name is random and made anew, so that no link waits there. The file gets the
    permissions that the umask leaves.

    Raises :class:`UserError` where the disk is full or the folder not writable; ``path`` is then as
    it was before.
    """
    temporary: Path | None = None
    try:
        descriptor, name = mkstemp(
            prefix=f".{path.name[:NAME_START]}.", suffix=".tmp", dir=path.parent
        )
        os.close(descriptor)
        temporary = Path(name)
        write(temporary)
        temporary.chmod(0o666 & ~_umask())
        with temporary.open("rb") as file:
            os.fsync(file.fileno())
        temporary.replace(path)
    except OSError as error:
        raise UserError(f"{path}: could not be written ({error.strerror or error})") from None
    finally:
        if temporary is not None:
            with suppress(OSError):
                temporary.unlink(missing_ok=True)


def write_folder(path: Path, fill: Callable[[Path], object], *, replace: bool = False) -> None:
    """Let ``fill`` write into a new folder beside ``path``, then rename it.

    ``path`` may be an empty folder; with ``replace``, what it holds goes once the new is there.

    Raises :class:`UserError` where the disk refuses, or ``path`` holds something that may not go.
    """
    path = path.resolve()
    aside: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(mkdtemp(prefix=f".{path.name[:NAME_START]}.", dir=path.parent))
        new, old = aside / "new", aside / "old"
        new.mkdir()
        fill(new)
        if replace and path.exists():
            path.replace(old)
        try:
            new.replace(path)
        except OSError:
            if old.exists():
                old.replace(path)
            raise
    except OSError as error:
        raise UserError(f"{path}: could not be written ({error.strerror or error})") from None
    finally:
        if aside is not None:
            shutil.rmtree(aside, ignore_errors=True)


def refuse_overwrite(output: Path, *inputs: Path) -> None:
    """Raises :class:`UserError` where writing ``output`` would replace an input.

    ``inputs`` are files or folders that the command reads; links to them count as well.
    """
    if not output.exists():
        return
    written, place = output.stat(), output.resolve()
    for source in inputs:
        try:
            read = source.stat()
        except OSError:
            continue
        inside = stat.S_ISDIR(read.st_mode) and place.is_relative_to(source.resolve())
        if inside or os.path.samestat(written, read):
            raise UserError(
                f"{output}: is, or belongs to, the input {source}, which is not overwritten; name "
                "another output"
            )


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: Path, text: str) -> None:
    """Write ``text`` as UTF-8, atomically."""
    write_atomically(path, lambda temporary: temporary.write_text(text, encoding="utf-8"))


def write_json(path: Path, values: Any) -> None:
    """Write ``values`` as indented JSON, atomically; NaN is refused, write None for it."""
    write_text(path, json.dumps(values, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """Parse a JSON file; raises :class:`UserError` where it is missing or not JSON.

    NaN and infinity are no JSON, and no file of ours holds them.
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"), parse_constant=_no_constant)
    except RecursionError:
        raise UserError(f"{path}: cannot be read as JSON (it is nested too deeply)") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path}: cannot be read as JSON ({reason})") from None


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")
