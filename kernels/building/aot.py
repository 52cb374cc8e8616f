"""Compile a launch ahead of time for an architecture, without a GPU, and read its resources."""

import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import triton
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource, make_backend

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
    """``wgmma``, ``tcgen05``, ``mma`` or ``fma``: what computes the products; ``wgmma and mma`` and
    the like where some take older instructions."""
    tensor_memory_columns: int
    """Columns of tensor memory on a Blackwell data-centre GPU, 0 elsewhere."""


@dataclass(frozen=True)
class Specialisation:
    """What decides a kernel's code beside its source, as Triton's launcher specialises it.

    ``signature`` has Triton's type of every parameter; ``constants`` and ``attributes`` (what is
    divisible by 16) are keyed by the path to a parameter or an item of a tuple.
    """

    signature: dict[str, Any]
    constants: dict[Any, Any]
    attributes: dict[tuple[int, ...], Any]


def specialise(launch: Launch, *, fold_ones: bool = True) -> Specialisation:
    """The specialisation of ``launch``; its tensors may be on the meta device.

    Triton's launcher compiles integers that are 1 into the code; without ``fold_ones`` they stay
    parameters, for launchers that pass every argument.
    """
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
        signature[name] = _describe(value, path, attributes, constants, fold_ones)
    return Specialisation(signature, constants, attributes)


def compile_for(launch: Launch, architecture: str, *, fold_ones: bool = True) -> Any:
    """Triton's compiled kernel of ``launch`` for ``"sm_90"`` and the like."""
    special = specialise(launch, fold_ones=fold_ones)
    source = ASTSource(launch.kernel, special.signature, special.constants, special.attributes)
    return triton.compile(source, target=_target(architecture), options=_options(launch))


def _target(architecture: str) -> GPUTarget:
    return GPUTarget("cuda", int(architecture.removeprefix("sm_")), WARP_SIZE)


def _options(launch: Launch) -> dict[str, Any]:
    return {
        "num_warps": launch.num_warps,
        "num_stages": launch.num_stages,
        "maxnreg": launch.max_registers,
        "enable_fp_fusion": True,
    }


def _describe(
    value: Any,
    path: tuple[int, ...],
    attributes: dict[tuple[int, ...], Any],
    constants: dict[Any, Any],
    fold_ones: bool,
) -> Any:
    """Triton's type of an argument, specialised as Triton's launcher specialises it."""
    if isinstance(value, tuple):
        return tuple(
            _describe(item, (*path, i), attributes, constants, fold_ones)
            for i, item in enumerate(value)
        )
    if isinstance(value, Tensor):
        attributes[path] = DIVISIBLE_BY_16
        return TRITON_TYPES[value.dtype]
    if isinstance(value, float):
        return "fp32"
    if value == 1 and fold_ones:
        constants[path] = 1
        return "constexpr"
    if value % 16 == 0:
        attributes[path] = DIVISIBLE_BY_16
    return "i32" if -(2**31) <= value < 2**31 else "i64"


@dataclass(frozen=True)
class KernelBinary:
    """Machine code of a launch that takes exactly its run-time parameters, in the kernel's order.

    ``threads`` a block; ``shared_bytes`` of dynamic shared memory a block (above 48 KiB the
    function attribute ``MAX_DYNAMIC_SHARED_SIZE_BYTES`` has to allow them).
    """

    entry: str
    ptx: str
    cubin: bytes
    threads: int
    shared_bytes: int


def binary_for(launch: Launch, architecture: str) -> KernelBinary:
    """Compile ``launch`` for launchers other than Triton's, which know nothing of its scratch.

    Triton appends two scratch pointers to every signature and its launcher passes null for them.
    Other launchers pass the run-time parameters alone, so the pointers are taken out of the
    signature and the PTX is assembled again.

    Raises ``RuntimeError`` where the kernel reads its scratch pointers, or assembling fails.
    """
    compiled = compile_for(launch, architecture, fold_ones=False)
    parameters = sum(1 for name in launch.kernel.arg_names if name not in launch.constants)
    ptx = _without_scratch(compiled.asm["ptx"], compiled.metadata.name, parameters)
    return KernelBinary(
        entry=compiled.metadata.name,
        ptx=ptx,
        cubin=_assemble(ptx, launch, architecture),
        threads=compiled.metadata.num_warps * WARP_SIZE,
        shared_bytes=compiled.metadata.shared,
    )


def _without_scratch(ptx: str, entry: str, parameters: int) -> str:
    head, opening, rest = ptx.partition(f".entry {entry}(")
    declared, closing, body = rest.partition(")")
    signature = [line for line in declared.split(",") if line.strip()]
    for line in signature[parameters:]:
        name = line.split()[-1]
        if re.search(rf"\b{re.escape(name)}\b", body):
            raise RuntimeError(
                f"{entry} reads its scratch pointer {name}; it needs Triton's launcher"
            )
    return head + opening + ",".join(signature[:parameters]) + "\n" + closing + body


def _assemble(ptx: str, launch: Launch, architecture: str) -> bytes:
    """Triton's own last compiler stage, with the assembler and the options that it takes."""
    target = _target(architecture)
    backend = make_backend(target)
    options = backend.parse_options(_options(launch))
    return bytes(backend.make_cubin(ptx, {}, options, target.arch))


def parameter_bytes(cubin: bytes) -> list[int]:
    """Sizes of a cubin's kernel parameters in order, as its own metadata has them."""
    listing = cuobjdump("--dump-elf", cubin)
    parameters = re.findall(
        r"EIATTR_KPARAM_INFO.*?Ordinal\s*:\s*0x([0-9a-f]+).*?Size\s*:\s*0x([0-9a-f]+)",
        listing,
        re.DOTALL,
    )
    return [size for _, size in sorted((int(o, 16), int(s, 16)) for o, s in parameters)]


def resources(compiled: Any) -> Resources:
    """Registers, spills, shared memory and the kind of matrix instructions of a compiled kernel.

    Raises ``RuntimeError`` where Triton's copy of ``cuobjdump`` is missing or fails.
    """
    usage = cuobjdump("--dump-resource-usage", compiled.asm["cubin"])
    match = re.search(r"REG:(\d+) STACK:(\d+)", usage)
    if match is None:
        raise RuntimeError(f"cuobjdump printed no resource usage: {usage.strip()[:200]}")
    return Resources(
        registers=int(match[1]),
        stack_bytes=int(match[2]),
        shared_kib=compiled.metadata.shared / 1024,
        mma=_mma_kind(compiled.asm["ptx"]),
        tensor_memory_columns=getattr(compiled.metadata, "tmem_size", 0) or 0,
    )


def _mma_kind(ptx: str) -> str:
    kinds = {"tcgen05": "tcgen05.mma", "wgmma": "wgmma.mma_async", "mma": "mma.sync"}
    products = [name for name, instruction in kinds.items() if instruction in ptx]
    return " and ".join(products) or ("fma" if "fma.rn" in ptx else "none")


def cuobjdump(option: str, cubin: bytes) -> str:
    """What Triton's copy of ``cuobjdump``, or the one on PATH, prints about a cubin.

    Raises ``RuntimeError`` where it is missing or fails.
    """
    program = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / "cuobjdump"
    path = str(program) if program.is_file() else shutil.which("cuobjdump")
    if path is None:
        raise RuntimeError(f"cuobjdump is missing: neither {program} nor on PATH")
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "kernel.cubin"
        file.write_bytes(cubin)
        done = subprocess.run([path, option, file], capture_output=True, text=True, check=False)
    if done.returncode:
        raise RuntimeError(f"cuobjdump {option} failed: {done.stderr.strip()}")
    return done.stdout
