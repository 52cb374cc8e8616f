"""The child process that decodes: what kills it does not harm the one that asks."""

import multiprocessing
import os
import resource
import signal
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from dicom_files import codestream
from pydicom.uid import JPEGLosslessSV1, JPEGLSLossless

from hmc_fast.data import decoder
from hmc_fast.data.codestream import read_codestream
from hmc_fast.data.decoder import DECODER, MEMORY_BYTES

NOISE = np.random.default_rng(1).integers(0, 4096, (40, 48), np.uint16)


@pytest.fixture
def frame(tmp_path: Path) -> bytes:
    return codestream(NOISE, JPEGLSLossless, tmp_path)


def decodes(frame: bytes) -> bool:
    pixels = DECODER.decode(frame, read_codestream(frame), JPEGLSLossless)
    return bool(np.array_equal(pixels, NOISE))


def test_a_header_that_aborts_gdcm_ends_the_child_alone(frame: bytes) -> None:
    position = frame.index(b"\xff\xf7") + 5
    hostile = frame[:position] + b"\xff" * 4 + frame[position + 4 :]
    header = replace(read_codestream(frame), rows=65535, columns=65535)
    with pytest.raises(ValueError, match="the codestream ends the decoder"):
        DECODER.decode(hostile, header, JPEGLSLossless)
    assert decodes(frame)


def test_a_child_that_was_killed_is_started_again(frame: bytes) -> None:
    assert decodes(frame)
    assert DECODER._child is not None
    os.kill(DECODER._child.pid, signal.SIGKILL)
    DECODER._child.wait()
    assert decodes(frame)


def test_a_child_that_hangs_is_ended(frame: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    assert decodes(frame)
    monkeypatch.setattr(decoder, "DEADLINE_S", 0.2)
    assert DECODER._child is not None
    os.kill(DECODER._child.pid, signal.SIGSTOP)
    with pytest.raises(ValueError, match="took over"):
        decodes(frame)
    monkeypatch.undo()
    assert decodes(frame)


def test_memory_and_core_dumps_of_the_child_are_limited(frame: bytes) -> None:
    assert decodes(frame)
    assert DECODER._child is not None
    memory, _ = resource.prlimit(DECODER._child.pid, resource.RLIMIT_AS)
    assert 0 < memory <= MEMORY_BYTES
    assert resource.prlimit(DECODER._child.pid, resource.RLIMIT_CORE) == (0, 0)


def test_what_a_decoder_prints_is_an_error(tmp_path: Path) -> None:
    frame = bytearray(codestream(NOISE, JPEGLosslessSV1, tmp_path))
    header = read_codestream(bytes(frame))
    frame[-2:-2] = b"\x12\x34\x56"  # before the end of the image
    with pytest.raises(ValueError, match="complains: Corrupt JPEG data: 3 extraneous bytes"):
        DECODER.decode(bytes(frame), header, JPEGLosslessSV1)


def test_threads_take_turns_and_forks_have_their_own(frame: bytes) -> None:
    with ThreadPoolExecutor(4) as pool:
        assert all(pool.map(lambda _: decodes(frame), range(8)))
    with multiprocessing.get_context("fork").Pool(2) as processes:
        assert all(processes.map(decodes, [frame] * 4))
    assert decodes(frame)


def test_a_module_beside_the_film_is_not_imported(
    frame: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("dl", "gdcm"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit(1)\n")
    monkeypatch.chdir(tmp_path)
    DECODER.close()
    assert decodes(frame)
