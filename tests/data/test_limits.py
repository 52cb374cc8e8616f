"""How many pixels a film may have: by default, by the option, in every process that reads."""

import multiprocessing
import resource
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import typer
from dicom_files import codestream, mammogram, save, with_frame
from PIL import Image
from pydicom.uid import JPEGLSLossless

from hmc_fast import UserError
from hmc_fast.cli.app import application
from hmc_fast.data import read_pixels
from hmc_fast.data.decoder import DECODER, MEMORY_BYTES
from hmc_fast.data.limits import MAX_PIXELS, MAX_PIXELS_VARIABLE, max_pixels, pixel_budget
from hmc_fast.data.pixels import film_header, picture_of

STORED = np.random.default_rng(1).integers(0, 4096, (40, 48), np.uint16)
REFUSED = f"header claims too many pixels, 40x48 .*--max-pixels or {MAX_PIXELS_VARIABLE} sets"


def png(path: Path) -> None:
    Image.fromarray(STORED).save(path)


def pgm(path: Path) -> None:
    path.write_bytes(b"P5\n48 40\n65535\n" + STORED.astype(">u2").tobytes())


def plain(path: Path) -> None:
    save(mammogram(STORED), path)


def compressed(path: Path) -> None:
    frame = codestream(STORED, JPEGLSLossless, path.parent)
    save(with_frame(frame, JPEGLSLossless, mammogram(STORED)), path)


KINDS = pytest.mark.parametrize(
    ("name", "write"),
    [("a.png", png), ("a.pgm", pgm), ("a.dcm", plain), ("b.dcm", compressed)],
    ids=["png", "pgm", "plain dicom", "compressed dicom"],
)


@KINDS
def test_the_budget_decides(name: str, write: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / name
    write(path)
    with pixel_budget(STORED.size - 1), pytest.raises(UserError, match=REFUSED):
        read_pixels(path)
    with pixel_budget(STORED.size):
        assert read_pixels(path).shape == STORED.shape
    assert max_pixels() == MAX_PIXELS


@KINDS
def test_the_header_is_refused_before_the_pixels_are_read(
    name: str, write: Callable[[Path], None], tmp_path: Path
) -> None:
    path = tmp_path / name
    write(path)
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])
    with pytest.raises(UserError, match="damaged|cannot be decoded|no pixels"):
        read_pixels(path)
    with pixel_budget(100), pytest.raises(UserError, match=REFUSED):
        read_pixels(path)


def test_a_larger_budget_goes_before_that_of_the_picture_library(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", Image.MAX_IMAGE_PIXELS)
    path = tmp_path / "a.pgm"
    path.write_bytes(b"P5\n20000 20000\n255\n")
    with pytest.raises(UserError, match=r"too many pixels \(at most 16384 a side and 100000000 in"):
        film_header(path)
    with pixel_budget(20_000**2):
        assert film_header(path)[:2] == (20_000, 20_000)


@pytest.mark.parametrize("start", ["fork", "spawn"])
def test_other_processes_have_the_same_budget(start: str, tmp_path: Path) -> None:
    path = tmp_path / "a.png"
    png(path)
    with (
        pixel_budget(9),
        multiprocessing.get_context(start).Pool(1) as processes,
        pytest.raises(UserError, match="too many pixels, 40x48"),
    ):
        processes.apply(read_pixels, (path,))


def test_the_decoder_gets_more_memory_for_larger_frames_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    compressed(tmp_path / "a.dcm")
    with pixel_budget(10 * MAX_PIXELS):
        read_pixels(tmp_path / "a.dcm")
    assert _memory_of_the_decoder() <= MEMORY_BYTES
    monkeypatch.setattr("hmc_fast.data.decoder.MAX_PIXELS", STORED.size // 2)
    monkeypatch.setattr("hmc_fast.data.decoder.MEMORY_BYTES", 2**30)
    read_pixels(tmp_path / "a.dcm")
    assert _memory_of_the_decoder() == 2**31


def _memory_of_the_decoder() -> int:
    assert DECODER._child is not None
    return resource.prlimit(DECODER._child.pid, resource.RLIMIT_AS)[0]


@pytest.mark.parametrize("text", ["0", "-5", "many", "1e6", ""])
def test_a_variable_that_is_no_number_is_named(
    text: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    png(tmp_path / "a.png")
    monkeypatch.setenv(MAX_PIXELS_VARIABLE, text)
    with pytest.raises(UserError, match=f"{MAX_PIXELS_VARIABLE}={text}: needs a number of pixels"):
        read_pixels(tmp_path / "a.png")


def test_a_film_that_is_too_large_has_no_picture(tmp_path: Path) -> None:
    png(tmp_path / "a.png")
    with pixel_budget(9):
        assert picture_of(tmp_path / "a.png") is None


FILM_OPTIONS = {"data", "calibration", "allow", "level", "dicom_out"}
"""What only commands have that read films."""


def test_every_command_that_reads_films_has_the_option() -> None:
    having, reading = set(), set()
    groups = [("", typer.main.get_command(application()))]
    for prefix, group in groups:
        for name, command in group.commands.items():  # type: ignore[attr-defined]  # a group
            path = f"{prefix} {name}".strip()
            if getattr(command, "commands", None):
                groups.append((path, command))
            parameters = {parameter.name for parameter in command.params}
            if "max_pixels" in parameters:
                having.add(path)
            if parameters & FILM_OPTIONS:
                reading.add(path)
    assert having == reading - {"score"}  # there the server decodes, by its own environment
    assert len(having) >= 12
