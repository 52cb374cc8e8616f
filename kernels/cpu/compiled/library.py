"""The library of the C++ sources beside this file.

The compiler that Triton and ``torch.compile`` use as well makes it in a few seconds, once for each
release of PyTorch and kind of processor.
"""

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import torch

SWITCH = "HMC_FAST_COMPILE"
"""Environment variable; ``0`` leaves the compiler alone."""
SOURCE = Path(__file__).with_name("attention.cpp")
HEADERS = tuple(SOURCE.with_name(f"{name}.h") for name in ("blocks", "forward", "backward"))
FLAGS = ("-O3", "-march=native", "-std=c++20", "-fPIC")
LONGEST_COMPILATION_S = 300


class CannotCompileError(Exception):
    """Why there is no compiled attention here."""


@cache
def function(name: str) -> Callable[..., int]:
    """A function of the library.

    Raises :class:`CannotCompileError`.
    """
    try:
        found = getattr(_library(), name)
    except AttributeError as error:
        raise CannotCompileError(f"{SOURCE.name}: {error}") from None
    found.restype = ctypes.c_int
    return cast("Callable[..., int]", found)


@cache
def _library() -> ctypes.CDLL:
    path = compile_library()
    try:
        return ctypes.CDLL(str(path))
    except OSError as error:
        raise CannotCompileError(f"{path}: cannot be loaded ({error})") from None


def compile_library() -> Path:
    """The library for this PyTorch and processor, made unless it is there.

    Raises :class:`CannotCompileError`.
    """
    if os.environ.get(SWITCH) == "0":
        raise CannotCompileError(f"{SWITCH}=0")
    if sys.platform != "linux":
        raise CannotCompileError("it is made for Linux")
    compiler = next(filter(None, map(shutil.which, (os.environ.get("CXX", ""), "g++"))), None)
    if compiler is None:
        raise CannotCompileError("there is no C++ compiler; apt-get install g++")
    place = cache_folder() / f"{_fingerprint(compiler)}.so"
    try:
        if place.exists():
            return place
        place.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        with TemporaryDirectory(dir=place.parent) as folder:
            made = Path(folder) / "attention.so"
            _run(compiler, *_compilation(made.with_suffix(".o")))
            _run(compiler, *_linking(made.with_suffix(".o"), made))
            with made.open("rb") as file:
                os.fsync(
                    file.fileno()
                )  # a library cut by a power failure would crash whoever loads it
            made.replace(place)
    except OSError as error:
        raise CannotCompileError(f"{place.parent}: cannot be used ({error.strerror})") from None
    return place


def cache_folder() -> Path:
    """Where libraries are kept, for this user alone.

    Raises :class:`CannotCompileError` for a user without a home.
    """
    try:
        home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    except RuntimeError:
        raise CannotCompileError("there is no home folder; set XDG_CACHE_HOME") from None
    return Path(home) / "hmc-fast" / "cpu"


def _fingerprint(compiler: str) -> str:
    """Of all that decides what the compiler makes."""
    processor = sorted(torch.cpu.get_capabilities().items())
    sources = [path.read_bytes() for path in (SOURCE, *HEADERS)]
    facts = (sources, torch.__version__, torch.version.git_version, compiler, FLAGS)
    return hashlib.sha256(repr((*facts, processor)).encode()).hexdigest()[:32]


def _compilation(made: Path) -> list[str]:
    include = Path(torch.__file__).parent / "include"
    abi = int(torch.compiled_with_cxx11_abi())
    folders = [f"-I{include}", f"-I{include / 'torch' / 'csrc' / 'api' / 'include'}"]
    switches = ["-fopenmp", f"-D_GLIBCXX_USE_CXX11_ABI={abi}"]
    return [*FLAGS, *switches, *folders, "-c", str(SOURCE), "-o", str(made)]


def _linking(compiled: Path, made: Path) -> list[str]:
    """Without OpenMP's library: that of PyTorch is there, and two would fight for the cores."""
    libraries = Path(torch.__file__).parent / "lib"
    return ["-shared", str(compiled), f"-L{libraries}", "-ltorch_cpu", "-lc10", "-o", str(made)]


def _run(*command: str) -> None:
    try:
        done = subprocess.run(
            command,
            capture_output=True,
            text=True,
            errors="replace",
            timeout=LONGEST_COMPILATION_S,
        )
    except subprocess.TimeoutExpired:
        raise CannotCompileError(f"{command[0]} took more than five minutes") from None
    if done.returncode != 0:
        lines = [line for line in done.stderr.splitlines() if "error" in line.lower()]
        reason = (lines or done.stderr.splitlines() or [f"exit code {done.returncode}"])[0]
        raise CannotCompileError(f"{command[0]} failed: {reason.strip()[:200]}")
