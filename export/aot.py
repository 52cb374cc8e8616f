"""Attention kernels compiled ahead of time, and a manifest that says how to launch them.

The kernels are those that the TensorRT plugin puts into an engine. A folder made here serves any
other launcher too: ``manifest.json`` has, for every attention call of a model and every
architecture, the cubin, its entry, grid, block, shared memory and arguments in order.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from hmc_fast.environment import installed_version
from hmc_fast.errors import UserError
from hmc_fast.export.packages import need
from hmc_fast.export.sidecar import FileIdentity, check_file
from hmc_fast.files import read_json, write_folder, write_json
from hmc_fast.kernels import ops  # noqa: F401  # registers the operators that programs name
from hmc_fast.kernels.problem import AttentionProblem
from hmc_fast.schema import STRICT, parse_json

if TYPE_CHECKING:
    from hmc_fast.kernels.fused.launch import Launch

FORMAT = 1
MANIFEST_FILE = "manifest.json"
BATCH = "batch"


@dataclass(frozen=True)
class AttentionCall:
    """One attention call of a traced model; ``problem`` has a batch of one."""

    name: str
    problem: AttentionProblem
    scale: float

    def tensors(
        self, batch: int, device: torch.device
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Random ``q``, ``ks`` and ``vs`` of ``batch`` images."""
        return replace(self.problem, batch=batch, device=device).tensors()


@dataclass(frozen=True)
class Argument:
    """One kernel argument: ``kind`` is ``input``, ``int32`` or ``output``.

    Tensors are contiguous, start at an address divisible by 16, and have ``dtype`` and ``shape``,
    whose first side is ``"batch"``; integers have their ``value``.
    """

    name: str
    kind: str
    dtype: str | None = None
    shape: tuple[str | int, ...] | None = None
    value: int | None = None

    __pydantic_config__ = STRICT


@dataclass(frozen=True)
class ManifestKernel:
    """How to launch one attention call on one architecture.

    The grid is ``(grid_per_image[0] · batch, grid_per_image[1], grid_per_image[2])`` and a block
    has ``(threads, 1, 1)``. ``shared_bytes`` of dynamic shared memory above 48 KiB need
    ``CU_FUNC_ATTRIBUTE_MAX_DYNAMIC_SHARED_SIZE_BYTES``.
    """

    call: str
    architecture: str
    entry: str
    file: FileIdentity
    grid_per_image: tuple[int, int, int]
    threads: int
    shared_bytes: int
    scale: float
    arguments: tuple[Argument, ...]

    __pydantic_config__ = STRICT


@dataclass(frozen=True)
class Manifest:
    """Every kernel of a folder, and the releases that compiled them."""

    checkpoint: FileIdentity
    precision: str
    kernels: tuple[ManifestKernel, ...]
    versions: dict[str, str | None]

    __pydantic_config__ = STRICT


def attention_calls(program: torch.export.ExportedProgram) -> list[AttentionCall]:
    """The attention calls of a traced model, in its order, named after their modules."""
    calls = []
    for node in program.graph.nodes:
        if node.target == torch.ops.hmc_fast.attention_forward.default:
            q, k, v = (argument.meta["val"] for argument in node.args[:3])
            ks, vs = [k], [v]
        elif node.target == torch.ops.hmc_fast.multi_scale_attention_forward.default:
            q = node.args[0].meta["val"]
            ks, vs = ([argument.meta["val"] for argument in node.args[i]] for i in (1, 2))
        else:
            continue
        stack = [path for path, _ in node.meta["nn_module_stack"].values()]
        name = stack[-1].removeprefix("model.") if stack else node.name
        # The batch may be symbolic; a problem has numbers alone.
        problem = AttentionProblem(
            1,
            int(q.shape[1]),
            int(q.shape[2]),
            tuple(int(k.shape[1]) for k in ks),
            tuple(int(v.shape[3]) for v in vs),
            int(q.shape[3]),
            q.dtype,
            name=name,
        )
        calls.append(AttentionCall(name, problem, float(node.args[3])))
    return calls


def plan_call(call: AttentionCall, architecture: str) -> "Launch":
    """The launch of one image, on tensors without memory, with the architecture's default tile."""
    from hmc_fast.kernels.building.engine_kernels import plan_engine_attention
    from hmc_fast.kernels.fused.launch import Target
    from hmc_fast.kernels.fused.tiles import fitting_architecture, load_tiles

    q, ks, vs = call.tensors(1, torch.device("meta"))
    outs = [q.new_empty(*q.shape[:3], v.shape[3]) for v in vs]
    target = Target(load_tiles(fitting_architecture(architecture)), 1, "ieee")
    return plan_engine_attention(target, q, ks, vs, call.scale, outs)


def check_targets(architectures: Sequence[str]) -> list[str]:
    """``architectures`` without repetitions.

    Raises :class:`UserError` where kernels are not made for one.
    """
    from hmc_fast.kernels.fused.tiles import SHARED_MEMORY_KIB, fitting_architecture

    for name in architectures:
        number = re.fullmatch(r"sm_(\d{2,3})", name)
        if number is None or fitting_architecture(name)[:-1] != f"sm_{number[1][:-1]}":
            known = ", ".join(SHARED_MEMORY_KIB)
            raise UserError(f"unknown target {name!r}; kernels exist for {known}")
    return list(dict.fromkeys(architectures))


def write_kernels(
    calls: Sequence[AttentionCall],
    architectures: Sequence[str],
    checkpoint: Path,
    precision: str,
    folder: Path,
) -> Manifest:
    """Compile ``calls`` for every architecture into ``folder``: all of its files, or none.

    Needs no GPU. A folder of an earlier export is replaced. Raises :class:`UserError` where the
    model has no attention of ours or one without a kernel, Triton is missing, an architecture is
    unknown, or the folder holds something else or cannot be written.
    """
    need("triton", extra="export")
    targets = check_targets(architectures)
    if not calls:
        raise UserError(f"{checkpoint}: this model has no attention kernels")
    if folder.exists() and not _is_ours(folder):
        raise UserError(f"{folder}: holds other files; name a new folder for the kernels")
    kernels, contents = [], {}
    for architecture in targets:
        for call in calls:
            name = f"{call.name}.{architecture}.cubin"
            kernel, contents[name] = _compile(call, architecture, name)
            kernels.append(kernel)
    versions = {name: installed_version(name) for name in ("hmc-fast", "torch", "triton")}
    manifest = Manifest(FileIdentity.of(checkpoint), precision, tuple(kernels), versions)

    def fill(new: Path) -> None:
        for name, content in contents.items():
            (new / name).write_bytes(content)
        write_json(new / MANIFEST_FILE, {"format": FORMAT, **asdict(manifest)})

    write_folder(folder, fill, replace=True)
    return manifest


def _compile(call: AttentionCall, architecture: str, name: str) -> tuple[ManifestKernel, bytes]:
    from triton.errors import TritonError

    from hmc_fast.kernels.building import aot

    where = f"{call.name} for {architecture}"
    try:
        launch = plan_call(call, architecture)
        binary = aot.binary_for(launch, architecture)
    except OSError as error:
        raise UserError(
            f"{where}: could not be compiled, as {error.filename or 'a temporary file'} could not "
            f"be written ({error.strerror or error}); Triton's cache is at TRITON_CACHE_DIR"
        ) from None
    except (LookupError, ValueError, RuntimeError, TritonError) as error:
        raise UserError(f"{where}: has no kernel ({str(error).strip().splitlines()[0]})") from None
    kernel = ManifestKernel(
        call=call.name,
        architecture=architecture,
        entry=binary.entry,
        file=FileIdentity.of_bytes(name, binary.cubin),
        grid_per_image=grid_per_image(launch),
        threads=binary.threads,
        shared_bytes=binary.shared_bytes,
        scale=call.scale,
        arguments=tuple(_arguments(launch)),
    )
    return kernel, binary.cubin


def _is_ours(folder: Path) -> bool:
    """An empty folder, or one with a manifest and cubins alone."""
    if not folder.is_dir():
        return False
    names = {path.name for path in folder.iterdir()}
    return not names or (
        MANIFEST_FILE in names and all(n == MANIFEST_FILE or n.endswith(".cubin") for n in names)
    )


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder, after checking every cubin against it.

    Raises :class:`UserError` where it is missing, damaged or of another format, or a cubin is not
    the one described.
    """
    path = folder / MANIFEST_FILE
    values = read_json(path)
    if not isinstance(values, dict) or values.pop("format", None) != FORMAT:
        raise UserError(f"{path}: has another format than {FORMAT}; export the kernels again")
    manifest = parse_json(Manifest, json.dumps(values), str(path))
    for kernel in manifest.kernels:
        cubin = folder / kernel.file.name
        if cubin.parent != folder or not cubin.is_file():
            raise UserError(f"{cubin}: is missing; export the kernels again")
        check_file(cubin, kernel.file, path.name)
    return manifest


def grid_per_image(launch: "Launch") -> tuple[int, int, int]:
    """The grid of a launch of one image; its first side grows with the batch."""
    x, y, z = (*launch.grid, 1, 1)[:3]
    return x, y, z


def _arguments(launch: "Launch") -> list[Argument]:
    arguments = []
    for parameter, value in launch.arguments.items():
        name = parameter.removesuffix("_ptr")
        if isinstance(value, Tensor):
            kind = "output" if name.startswith("out") else "input"
            dtype = str(value.dtype).removeprefix("torch.")
            arguments.append(Argument(name, kind, dtype, (BATCH, *value.shape[1:])))
        else:
            arguments.append(Argument(name, "int32", value=value))
    return arguments
