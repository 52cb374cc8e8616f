"""Writing files so that nothing is ever half-written; reading JSON and CSV."""

import csv
import json
import os
import shutil
import stat
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from tempfile import mkdtemp, mkstemp
from typing import Any, TextIO

from hmc_fast.errors import UserError

NAME_START = 60
"""Characters of a file's name that its temporary one begins with; names end at 255 bytes."""


@dataclass
class _Output:
    """Where a command writes, and the file that marks it as the command's."""

    path: Path
    mark: Path
    text: str
    marked: bool = False


@dataclass
class _Command:
    """What a running command has made."""

    folders: list[Path] = field(default_factory=list)
    outputs: list[_Output] = field(default_factory=list)


_running: list[_Command] = []
"""The running command, if any; its threads write for it as well."""


@contextmanager
def no_debris() -> Iterator[None]:
    """A command runs in this block.

    Where it fails, the folders that it made and left empty go with it.
    """
    command = _Command()
    _running.append(command)
    try:
        yield
    except BaseException:
        for folder in reversed(command.folders):
            with suppress(OSError):  # not empty: somebody needs it
                folder.rmdir()
        raise
    finally:
        _running.remove(command)


def mark_output(output: Path, mark: Path, text: str) -> None:
    """Write ``text`` to ``mark`` just before the running command's first file in ``output``.

    So a later run knows whose files these are, even after a kill, and a command that refuses to
    write changes nothing. ``output`` is a file or a folder of files.
    """
    path, mark = output.absolute(), mark.absolute()  # a link is what is replaced, not its target
    for command in _running[-1:]:
        command.outputs.append(_Output(path, mark, text))


def _mark(path: Path) -> None:
    """``path`` is about to be there."""
    path = path.absolute()
    for output in (output for command in _running[-1:] for output in command.outputs):
        if not output.marked and path != output.mark and path.is_relative_to(output.path):
            write_text(output.mark, output.text)
            output.marked = True


def make_folder(path: Path) -> Path:
    """Create ``path`` and its parents; raises :class:`UserError` where that is not possible."""
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    try:
        path.mkdir(parents=True, exist_ok=True)
        for command in _running[-1:]:
            command.folders += reversed(missing)
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
        _mark(path)
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
    named, path = path, path.resolve()
    aside: Path | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside = Path(mkdtemp(prefix=f".{path.name[:NAME_START]}.", dir=path.parent))
        new, old = aside / "new", aside / "old"
        new.mkdir()
        fill(new)
        _mark(named)
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
    """Write ``text`` as UTF-8, atomically; see :func:`spelled` for names that are none."""
    write_atomically(path, lambda temporary: temporary.write_text(spelled(text), encoding="utf-8"))


def spelled(text: str) -> str:
    r"""Text with the bytes of file names that are no UTF-8 spelled out, as ``\udcff``."""
    return text.encode("utf-8", "backslashreplace").decode()


def write_rows(file: TextIO, rows: Iterable[Sequence[Any]]) -> None:
    r"""Write ``rows`` as CSV with lines that end in ``\n``.

    A cell with a carriage return, as a file's name may have, is quoted: the csv module leaves it
    bare, and takes it for the end of a line when it reads.
    """
    plain = csv.writer(file, lineterminator="\n")
    quoted = csv.writer(file, lineterminator="\n", quoting=csv.QUOTE_ALL)
    for row in rows:
        bare = any(isinstance(cell, str) and "\r" in cell for cell in row)
        (quoted if bare else plain).writerow(row)


def write_json(path: Path, values: Any) -> None:
    """Write ``values`` as indented JSON, atomically; NaN is refused, write None for it."""
    write_text(path, json.dumps(values, indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """A JSON file; raises :class:`UserError` where it is missing or no :func:`strict_json`."""
    try:
        return strict_json(path.read_text(encoding="utf-8"))
    except RecursionError:
        raise UserError(f"{path}: cannot be read as JSON (it is nested too deeply)") from None
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise UserError(f"{path}: cannot be read as JSON ({reason})") from None


def strict_json(text: str | bytes) -> Any:
    """A JSON document without NaN, infinity and keys given twice: no file of ours holds them.

    Raises ``ValueError``, and ``RecursionError`` where it is nested too deeply.
    """
    return json.loads(text, parse_constant=_no_constant, object_pairs_hook=_no_doubled_key)


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")


def _no_doubled_key(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(pairs)
    if len(values) < len(pairs):
        doubled, _ = Counter(key for key, _ in pairs).most_common(1)[0]
        raise ValueError(f"the key {doubled[:80]!r} is given twice")
    return values


def read_rows(path: Path) -> tuple[list[str], list[tuple[int, dict[str, str]]]]:
    """A CSV table in UTF-8: its columns in lower case, and each row by column, with its line.

    Cells are without blanks around them.

    Raises :class:`UserError` where it cannot be read, names a column twice, or a row has more or
    fewer cells than the header.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            reader = csv.reader(file, strict=True)
            header = [name.strip().lower() for name in next(reader, [])]
            if len(set(header)) < len(header):
                double = max(header, key=header.count)
                raise UserError(f"{path}: has an unknown or doubled column {double!r}")
            rows = []
            for cells in reader:
                if cells and len(cells) != len(header):
                    raise UserError(
                        f"{path} line {reader.line_num}: has more or fewer cells than the header"
                    )
                if any("\0" in cell for cell in cells):
                    raise UserError(f"{path} line {reader.line_num}: holds a zero byte")
                if cells:
                    named = zip(header, (cell.strip() for cell in cells), strict=True)
                    rows.append((reader.line_num, dict(named)))
            return header, rows
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: is no CSV table in UTF-8 ({error})") from None
