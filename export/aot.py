"""Attention kernels compiled ahead of time, and a manifest that says how to launch them.

The kernels are those that the TensorRT plugin puts into an engine. A folder made here serves any
other launcher too: ``manifest.json`` has, for every attention call of a model and every
architecture, the cubin, its entry, grid, block, shared memory and arguments in order.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from hmc_fast.environment import installed_version
from hmc_fast.errors import UserError
from hmc_fast.export.packages import need
from hmc_fast.export.sidecar import FileIdentity, check_file
from hmc_fast.files import make_folder, read_json, write_atomically, write_json
from hmc_fast.kernels import ops  # noqa: F401  # registers the operators that programs name
from hmc_fast.kernels.model_problems import AttentionProblem

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
        return replace(self.problem, batch=batch).tensors(device)


@dataclass(frozen=True)
class Argument:
    """One kernel argument: ``kind`` is ``input``, ``int32`` or ``output``.

    Tensors are contiguous and have ``dtype`` and ``shape``, whose first side is ``"batch"``;
    integers have their ``value``.
    """

    name: str
    kind: str
    dtype: str | None = None
    shape: tuple[str | int, ...] | None = None
    value: int | None = None


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


@dataclass(frozen=True)
class Manifest:
    """Every kernel of a folder, and the releases that compiled them."""

    checkpoint: FileIdentity
    precision: str
    kernels: tuple[ManifestKernel, ...]
    versions: dict[str, str | None]


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
        sources = tuple((int(k.shape[1]), int(v.shape[3])) for k, v in zip(ks, vs, strict=True))
        name = stack[-1].removeprefix("model.") if stack else node.name
        problem = AttentionProblem(
            name, 1, int(q.shape[1]), int(q.shape[2]), sources, int(q.shape[3]), q.dtype
        )
        calls.append(AttentionCall(name, problem, float(node.args[3])))
    return calls


def plan_call(call: AttentionCall, architecture: str) -> "Launch":
    """The launch of one image, on tensors without memory, with the architecture's default tile."""
    from hmc_fast.kernels.fused.engine_kernels import plan_engine_attention
    from hmc_fast.kernels.fused.planning import Target
    from hmc_fast.kernels.fused.tiles import fitting_architecture, load_tiles

    q, ks, vs = call.tensors(1, torch.device("meta"))
    outs = [q.new_empty(*q.shape[:3], v.shape[3]) for v in vs]
    target = Target(load_tiles(fitting_architecture(architecture)), 1, "ieee")
    return plan_engine_attention(target, q, ks, vs, call.scale, outs)


def write_kernels(
    calls: Sequence[AttentionCall],
    architectures: Sequence[str],
    checkpoint: Path,
    precision: str,
    folder: Path,
) -> Manifest:
    """Compile ``calls`` for every architecture into ``folder``; the manifest is written last.

    Needs no GPU. Raises :class:`UserError` where the model has no attention of ours, Triton is
    missing, an architecture is unknown, or the folder cannot be written.
    """
    need("triton", extra="export")
    from hmc_fast.kernels.fused import aot
    from hmc_fast.kernels.fused.tiles import SHARED_MEMORY_KIB

    if not calls:
        raise UserError(f"{checkpoint}: this model has no attention kernels")
    for architecture in architectures:
        if architecture not in SHARED_MEMORY_KIB:
            known = ", ".join(SHARED_MEMORY_KIB)
            raise UserError(f"unknown target {architecture!r}; kernels exist for {known}")
    make_folder(folder)
    kernels = []
    for architecture in architectures:
        for call in calls:
            launch = plan_call(call, architecture)
            try:
                binary = aot.binary_for(launch, architecture)
            except OSError as error:
                raise UserError(
                    f"{call.name} for {architecture}: Triton's cache (TRITON_CACHE_DIR) cannot be "
                    f"written ({error.strerror or error})"
                ) from None
            name = f"{call.name}.{architecture}.cubin"
            _write_bytes(folder / name, binary.cubin)
            kernels.append(
                ManifestKernel(
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
            )
    versions = {name: installed_version(name) for name in ("hmc-fast", "torch", "triton")}
    manifest = Manifest(FileIdentity.of(checkpoint), precision, tuple(kernels), versions)
    write_json(folder / MANIFEST_FILE, {"format": FORMAT, **asdict(manifest)})
    return manifest


def read_manifest(folder: Path) -> Manifest:
    """The manifest of a folder, after checking every cubin against it.

    Raises :class:`UserError` where it is missing, damaged or of another format, or a cubin is not
    the one described.
    """
    path = folder / MANIFEST_FILE
    values = read_json(path)
    try:
        if values.pop("format") != FORMAT:
            raise UserError(f"{path}: has another format than {FORMAT}; export the kernels again")
        kernels = tuple(_parse_kernel(kernel) for kernel in values.pop("kernels"))
        manifest = Manifest(
            **{**values, "checkpoint": FileIdentity(**values["checkpoint"]), "kernels": kernels}
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            f"{path}: is no manifest of ours or is damaged (problem with {error}); export the "
            "kernels again"
        ) from None
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
    found = []
    for parameter, value in launch.arguments.items():
        name = parameter.removesuffix("_ptr")
        if isinstance(value, Tensor):
            kind = "output" if name.startswith("out") else "input"
            dtype = str(value.dtype).removeprefix("torch.")
            found.append(Argument(name, kind, dtype, (BATCH, *value.shape[1:])))
        else:
            found.append(Argument(name, "int32", value=value))
    return found


def _parse_kernel(values: dict[str, Any]) -> ManifestKernel:
    arguments = tuple(
        Argument(**{**a, "shape": a["shape"] and tuple(a["shape"])}) for a in values["arguments"]
    )
    grid = tuple(int(side) for side in values["grid_per_image"])
    if len(grid) != 3:
        raise ValueError(f"grid_per_image {grid}")
    fields = {"file": FileIdentity(**values["file"]), "grid_per_image": grid}
    return ManifestKernel(**{**values, **fields, "arguments": arguments})


def _write_bytes(path: Path, content: bytes) -> None:
    write_atomically(path, lambda temporary: temporary.write_bytes(content))
