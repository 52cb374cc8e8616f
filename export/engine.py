"""ONNX graph to TensorRT engine, with sidecar."""

from dataclasses import dataclass, replace
from pathlib import Path

from hmc_fast.errors import UserError
from hmc_fast.export.attention import FORMS
from hmc_fast.export.builders import AUTO, Builder, BuildLog, BuildRequest
from hmc_fast.export.engine_form import engine_form
from hmc_fast.export.memory import DEFAULT_GPU_GIB, check_fits, check_gpu_memory
from hmc_fast.export.onnx_export import EngineGraph, OnnxExport, check_output, make_onnx, name_files
from hmc_fast.export.sidecar import EngineInfo, FileIdentity, Profile, Sidecar, write_artefacts
from hmc_fast.files import make_folder, write_atomically
from hmc_fast.progress import Progress, no_progress

ONNX_SUFFIX = ".onnx"


@dataclass(frozen=True)
class EngineOptions:
    """How to build.

    Args:
        flavour: ``tensorrt``, ``tensorrt-rtx`` or ``auto``.
        targets: architectures such as ``sm_89``; empty for the builder's from Ampere on
            (tensorrt-rtx) or the GPU at hand (tensorrt).
        timing_cache: file that is read where it exists and written after the build; tensorrt only.
        version_compatible: the engine runs under later releases too; tensorrt only.
        hardware_compatible: the engine runs on any GPU from Ampere on; tensorrt only.
        plugin: attention is our kernels, compiled into the engine; tensorrt only.
        gpu_memory_gib: memory of the GPU that the engine must fit; None for no check, and a default
            profile for a small GPU.
    """

    flavour: str = AUTO
    targets: tuple[str, ...] = ()
    timing_cache: Path | None = None
    version_compatible: bool = False
    hardware_compatible: bool = False
    plugin: bool = False
    gpu_memory_gib: float | None = None


def export_engine(
    checkpoint: Path,
    out: Path,
    *,
    precision: str = "fp16",
    profile: Profile | None = None,
    size: int | None = None,
    options: EngineOptions | None = None,
    on_progress: Progress = no_progress,
) -> Sidecar:
    """Write ``checkpoint`` as the engine ``out``; see :func:`make_onnx` and :func:`write_engine`.

    What the options ask for is checked before anything is computed.
    """
    options = options or EngineOptions()
    check_options(options, checkpoint, out)
    export = make_onnx(
        checkpoint,
        precision=precision,
        profile=profile,
        size=size,
        engine_form=form_for_engine(options, precision),
        plugin=options.plugin,
        gpu_memory_gib=options.gpu_memory_gib or DEFAULT_GPU_GIB,
        on_progress=on_progress,
    )
    return write_engine(export, checkpoint, out, options, on_progress=on_progress)


def form_for_engine(options: EngineOptions, precision: str) -> str | None:
    """The form of attention that the builder executes best; None where our plugin is attention."""
    if options.plugin:
        return None
    builder = Builder(options.flavour)
    return engine_form(builder.flavour.name, builder.choose_targets(options.targets), precision)


def fused_attentions(graph: EngineGraph, log: BuildLog) -> int | None:
    """How many attentions of an engine run as one kernel each, None where that is not known."""
    if graph.attentions is None:
        return None
    fusion = "pattern" if graph.form is None else FORMS[graph.form].fusion
    return {"pattern": log.fused_softmaxes, "node": graph.attentions, "none": 0}[fusion]


def check_options(options: EngineOptions, checkpoint: Path, out: Path) -> None:
    """Before hours are spent: raises :class:`UserError` for what cannot be built or written.

    That is options that the builder cannot fulfil, a bad name, or one that is taken.
    """
    builder = Builder(options.flavour)
    builder.choose_targets(options.targets)
    builder.check_features(
        options.timing_cache,
        options.version_compatible,
        options.hardware_compatible,
        options.plugin,
    )
    check_gpu_memory(options.gpu_memory_gib)
    if out.suffix == ONNX_SUFFIX:
        raise UserError(f"{out}: this name is for the graph beside the engine; use .engine")
    for path in (out, out.with_suffix(ONNX_SUFFIX)):
        check_output(path, checkpoint)
    make_folder(out.parent)


def write_engine(
    export: OnnxExport,
    checkpoint: Path,
    out: Path,
    options: EngineOptions,
    *,
    on_progress: Progress = no_progress,
) -> Sidecar:
    """Build an engine from a graph and write it, the graph beside it, and both sidecars.

    The graph has the engine's name with ``.onnx``, and attention as ONNX Runtime wants it:
    verification runs it where the engine cannot run. All files are written, or none.

    Raises:
        UserError: the builder lacks what is asked for or refuses the graph, the engine does not fit
            the GPU, or the disk refuses.
        KeyboardInterrupt: Ctrl-C; nothing is written.
    """
    check_options(options, checkpoint, out)
    builder = Builder(options.flavour)
    targets = builder.choose_targets(options.targets)
    request = BuildRequest(
        export.sidecar.profile,
        targets,
        _read_timing_cache(options.timing_cache),
        options.version_compatible,
        options.hardware_compatible,
        options.plugin,
    )
    graph = export.engine
    if graph is None:
        raise UserError("the graph for an engine is missing; make it with make_onnx(engine_form=…)")
    built = builder.build(graph.content, request, on_progress)
    if built.tensors != export.sidecar.tensors:
        raise RuntimeError(f"the builder sees {built.tensors}, not {export.sidecar.tensors}")
    info = EngineInfo(
        builder.flavour.name,
        builder.version,
        targets,
        options.version_compatible,
        options.hardware_compatible,
        FileIdentity.of_bytes("", export.content),
        options.plugin,
        built.log.activation_bytes,
        built.log.weight_bytes,
        graph.attentions,
        fused_attentions(graph, built.log),
        graph.form,
    )
    if options.gpu_memory_gib is not None:
        described = export.sidecar
        check_fits(
            info,
            len(built.content),
            described.preprocessing,
            described.profile,
            options.gpu_memory_gib,
        )
    graph_path = out.with_suffix(ONNX_SUFFIX)
    graph_sidecar = name_files(export, checkpoint, graph_path)
    sidecar = replace(
        graph_sidecar,
        kind="engine",
        file=FileIdentity.of_bytes(out.name, built.content),
        tensors=built.tensors,
        engine=replace(info, onnx=graph_sidecar.file),
    )
    write_artefacts([(graph_path, export.content, graph_sidecar), (out, built.content, sidecar)])
    if options.timing_cache is not None and built.timing_cache is not None:
        cache = built.timing_cache
        write_atomically(options.timing_cache, lambda temporary: temporary.write_bytes(cache))
    return sidecar


def _read_timing_cache(path: Path | None) -> bytes | None:
    """None without a cache; empty for one that does not exist yet."""
    if path is None:
        return None
    try:
        return path.read_bytes() if path.exists() else b""
    except OSError as error:
        raise UserError(f"{path}: cannot be read ({error.strerror})") from None
