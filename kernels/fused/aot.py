"""Compile a launch ahead of time for an architecture, without a GPU, and read its resources."""

import re
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from hmc_fast.kernels.fused.launch import Launch

WARP_SIZE = 32
DIVISIBLE_BY_16 = [["tt.divisibility", 16]]
TRITON_TYPES = {
    torch.float16: "*fp16",
    torch.bfloat16: "*bf16",
    torch.float32: "*fp32",
}


@dataclass(frozen=True)
class Resources:
    """What one compiled kernel uses, from ``cuobjdump`` and its machine code."""

    registers: int
    stack_bytes: int
    """Local memory per thread: more than zero means spilled registers."""
    shared_kib: float
    mma: str
    """``wgmma``, ``tcgen05``, ``mma`` or ``fma``: what computes the products."""
    tensor_memory_columns: int
    """Columns of tensor memory on a Blackwell data-centre GPU, 0 elsewhere."""


def compile_for(launch: Launch, architecture: str) -> Any:
    """Triton's compiled kernel of ``launch`` for ``"sm_90"`` and the like."""
    capability = int(architecture.removeprefix("sm_"))
    signature: dict[str, Any] = {}
    attributes: dict[tuple[int, ...], Any] = {}
    constants: dict[Any, Any] = dict(launch.constants)
    names = launch.kernel.arg_names
    for name in names:
        if name in launch.constants:
            signature[name] = "constexpr"
            continue
        value = launch.arguments[name]
        path = (names.index(name),)
        signature[name] = _describe(value, path, attributes, constants)
    source = ASTSource(launch.kernel, signature, constants, attributes)
    options = {
        "num_warps": launch.num_warps,
        "num_stages": launch.num_stages,
        "enable_fp_fusion": True,
    }
    return triton.compile(source, target=GPUTarget("cuda", capability, WARP_SIZE), options=options)


def _describe(
    value: Any,
    path: tuple[int, ...],
    attributes: dict[tuple[int, ...], Any],
    constants: dict[Any, Any],
) -> Any:
    """Triton's type of an argument, specialised as Triton's launcher specialises it."""
    if isinstance(value, tuple):
        return tuple(
            _describe(item, (*path, i), attributes, constants) for i, item in enumerate(value)
        )
    if isinstance(value, Tensor):
        attributes[path] = DIVISIBLE_BY_16
        return TRITON_TYPES[value.dtype]
    if isinstance(value, float):
        return "fp32"
    if value == 1:
        constants[path] = 1
        return "constexpr"
    if value % 16 == 0:
        attributes[path] = DIVISIBLE_BY_16
    return "i32" if -(2**31) <= value < 2**31 else "i64"


def resources(compiled: Any) -> Resources:
    """Registers, spills, shared memory and the kind of matrix instructions of a compiled kernel.

    Raises ``RuntimeError`` where Triton's copy of ``cuobjdump`` is missing or fails.
    """
    with tempfile.TemporaryDirectory() as folder:
        cubin = Path(folder) / "kernel.cubin"
        cubin.write_bytes(compiled.asm["cubin"])
        usage = _cuobjdump("--dump-resource-usage", cubin)
    found = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if found is None:
        raise RuntimeError(f"cuobjdump printed no resource usage: {usage.strip()[:200]}")
    return Resources(
        registers=int(found[1]),
        stack_bytes=int(found[2]),
        shared_kib=compiled.metadata.shared / 1024,
        mma=_mma_kind(compiled.asm["ptx"]),
        tensor_memory_columns=getattr(compiled.metadata, "tmem_size", 0) or 0,
    )


def _mma_kind(ptx: str) -> str:
    kinds: list[tuple[str, Callable[[str], bool]]] = [
        ("tcgen05", lambda text: "tcgen05.mma" in text),
        ("wgmma", lambda text: "wgmma.mma_async" in text),
        ("mma", lambda text: "mma.sync" in text),
        ("fma", lambda text: "fma.rn" in text),
    ]
    return next((name for name, present in kinds if present(ptx)), "none")


def _cuobjdump(option: str, cubin: Path) -> str:
    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    path = str(program) if program.is_file() else shutil.which("cuobjdump")
    if path is None:
        raise RuntimeError(f"cuobjdump is missing: neither {program} nor on PATH")
    done = subprocess.run([path, option, str(cubin)], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"cuobjdump {option} failed: {done.stderr.strip()}")
    return done.stdout
