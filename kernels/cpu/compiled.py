"""The forward pass in C++ (``attention.cpp``), compiled on the machine that it runs on.

PyTorch multiplies small blocks of bf16 into fp32, and of fp32 by oneDNN on any processor, for its
own kernels alone: only C++ reaches them. The compiler that Triton and ``torch.compile`` use as well
makes the library in a few seconds, once for each release of PyTorch and kind of processor. Where
that is not possible, :mod:`hmc_fast.kernels.cpu.forward` computes the same.
"""

import ctypes
import hashlib
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import cast

import torch
from torch import Tensor

SWITCH = "HMC_FAST_COMPILE"
"""Environment variable; ``0`` leaves the compiler alone."""
SOURCE = Path(__file__).with_name("attention.cpp")
FLAGS = ("-O3", "-march=native", "-std=c++20", "-fPIC")
LONGEST_COMPILATION_S = 300
OUT_OF_MEMORY = 2
"""What the library's function returns then."""
INSTRUCTIONS = {torch.float32: "avx512_f", torch.bfloat16: "avx512_bf16"}
"""What a processor needs for inputs of a dtype, by PyTorch's name."""


class _Tokens(ctypes.Structure):
    """``Tokens`` of the C++ source: a tensor ``[B, N, H, D]`` whose last axis has no gaps."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("count", "width")),
        *((name, ctypes.c_int64) for name in ("batch_stride", "token_stride", "head_stride")),
    )

    @classmethod
    def of(cls, x: Tensor) -> "_Tokens":
        batch, token, head, _ = x.stride()
        return cls(x.data_ptr(), x.shape[1], x.shape[3], batch, token, head)


class _Source(ctypes.Structure):
    """``Source`` of the C++ source."""

    _fields_ = (("keys", _Tokens), ("values", _Tokens), ("out", ctypes.c_void_p))


class _Problem(ctypes.Structure):
    """``Problem`` of the C++ source."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("is_bf16", "batch", "heads", "sources")),
        ("scale", ctypes.c_float),
        ("queries", _Tokens),
        ("source", ctypes.POINTER(_Source)),
        ("lse", ctypes.c_void_p),
        ("weights", ctypes.c_void_p),
    )


class CannotCompileError(Exception):
    """Why there is no compiled forward pass here."""


def takes(q: Tensor, ks: Sequence[Tensor], vs: Sequence[Tensor]) -> bool:
    """Whether the compiled forward pass serves these inputs on this machine."""
    tensors = (q, *ks, *vs)
    return (
        q.dtype in INSTRUCTIONS
        and all(x.dtype == q.dtype and x.numel() > 0 for x in tensors)
        and (q.dtype == torch.float32 or q.shape[3] % 2 == 0)  # bf16 is multiplied in pairs
        and why_not(q.dtype) is None
    )


@cache
def why_not(dtype: torch.dtype) -> str | None:
    """Why inputs of ``dtype`` are not served here; None where they are.

    The first call compiles if need be, and runs a first problem: two keys of equal scores.
    """
    instructions = INSTRUCTIONS.get(dtype)
    if instructions is None:
        return f"it takes no {dtype}"
    if not torch.cpu.get_capabilities().get(instructions):
        return f"the processor lacks {instructions}"
    q = torch.zeros(1, 1, 1, 2, dtype=dtype, device="cpu")
    v = torch.tensor([1.0, 3.0], dtype=dtype, device="cpu").view(1, 2, 1, 1)
    try:
        outs, _, _ = multi_scale_attention(q, [q.expand(1, 2, 1, 2)], [v], 1.0)
    except CannotCompileError as error:
        return str(error)
    return None if outs[0].item() == 2 else f"a first problem gave {outs[0].item()}, not 2"


def multi_scale_attention(
    q: Tensor, ks: Sequence[Tensor], vs: Sequence[Tensor], scale: float
) -> tuple[list[Tensor], Tensor, Tensor]:
    """As :func:`hmc_fast.kernels.reference.multi_scale_attention`, for what :func:`takes`.

    Softmax, statistics and sums are in fp32. Probabilities of bf16 inputs are rounded to bf16
    before they multiply values.
    """
    q, ks, vs = _without_gaps(q), [_without_gaps(k) for k in ks], [_without_gaps(v) for v in vs]
    batch, queries, heads, _ = q.shape
    outs = [q.new_empty(batch, queries, heads, v.shape[3]) for v in vs]
    lse = q.new_empty(batch, heads, queries, dtype=torch.float32)
    weights = lse.new_empty(batch, heads, queries, len(vs))
    sources = (_Source * len(ks))(
        *(
            _Source(_Tokens.of(k), _Tokens.of(v), out.data_ptr())
            for k, v, out in zip(ks, vs, outs, strict=True)
        )
    )
    problem = _Problem(
        int(q.dtype == torch.bfloat16),
        batch,
        heads,
        len(ks),
        scale,
        _Tokens.of(q),
        sources,
        lse.data_ptr(),
        weights.data_ptr(),
    )
    code = library()(ctypes.byref(problem))
    if code == OUT_OF_MEMORY:
        raise MemoryError("attention: no memory for packed keys and values")
    if code != 0:
        raise CannotCompileError(f"torch {torch.__version__} has no products for this processor")
    return outs, lse, weights


def _without_gaps(x: Tensor) -> Tensor:
    return x if x.stride(3) == 1 else x.contiguous()


@cache
def library() -> Callable[..., int]:
    """The function of the compiled source.

    Raises :class:`CannotCompileError`.
    """
    path = compile_library()
    try:
        function = ctypes.CDLL(str(path)).hmc_fast_attention
    except (OSError, AttributeError) as error:
        raise CannotCompileError(f"{path}: cannot be loaded ({error})") from None
    function.restype = ctypes.c_int
    return cast("Callable[..., int]", function)


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
    if place.exists():
        return place
    try:
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
        raise CannotCompileError(f"{place.parent}: cannot be written ({error.strerror})") from None
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
    facts = (SOURCE.read_bytes(), torch.__version__, torch.version.git_version, compiler, FLAGS)
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
