"""``hmc-fast export``: ONNX files, TensorRT engines, kernels and Triton model repositories."""

import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hmc_fast.cli import options
from hmc_fast.cli.choices import choice
from hmc_fast.cli.config_file import Effective, takes_config
from hmc_fast.cli.film_limit import limits_films
from hmc_fast.cli.output import console, errors, print_json, print_table, progress_bar
from hmc_fast.errors import UserError

if TYPE_CHECKING:
    from hmc_fast.data import Film
    from hmc_fast.export import EngineOptions, OnnxExport, Sidecar

export = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")

Checkpoint = Annotated[Path, typer.Argument(help="A model.safetensors of ours.")]
Precision = Annotated[
    str,
    choice(
        "precision", options.PRECISIONS, help="Types in the graph; softmax and logits are fp32."
    ),
]
Batch = Annotated[
    str,
    typer.Option("--batch-sizes", "--batch", help="Smallest, best and largest batch: min,opt,max."),
]
Size = Annotated[int | None, typer.Option(help="Rows of the image; by default as trained.")]
Runtime = Annotated[
    str,
    choice(
        "runtime",
        ("onnxruntime", "openvino", "tensorrt"),
        help="Whose form of attention the graph has. For an engine use export tensorrt.",
    ),
]
OutFile = Annotated[Path | None, typer.Option(help="By default named after the checkpoint.")]
Quantise = Annotated[
    str | None,
    choice(
        "format",
        ("int8", "fp8"),
        "--quantise",
        help="Number format of Q/DQ pairs, calibrated on --calibration.",
    ),
]
Calibration = Annotated[
    Path | None,
    typer.Option(help="Folder or CSV table for --quantise; films it was trained on."),
]
CalibrationFilms = Annotated[int, typer.Option(min=1, help="How many of them, evenly spread.")]


@export.callback()
def _group() -> None:
    """Export a checkpoint: ONNX file, TensorRT engine, Triton model repository."""


@export.command()
@takes_config
@limits_films
def onnx(
    checkpoint: Checkpoint,
    out: OutFile = None,
    precision: Precision = "fp32",
    batch: Batch = "1,8,64",
    size: Size = None,
    runtime: Runtime = "onnxruntime",
    quantise: Quantise = None,
    calibration: Calibration = None,
    calibration_films: CalibrationFilms = 64,
    as_json: options.AsJson = False,
    *,
    effective: Effective,
) -> None:
    """Checkpoint to an ONNX file with a dynamic batch, and its sidecar.

    ONNX Runtime and OpenVINO run the same file. Attention goes through blocks of queries in it, so
    that memory is bounded; the form for TensorRT would take gigabytes there, and is refused.

    Example: [bold]hmc-fast export onnx runs/a/model.safetensors --precision fp16[/bold]
    """
    from hmc_fast.export.onnx_export import check_output, write_onnx
    from hmc_fast.files import make_folder

    target = out or checkpoint.with_suffix(".onnx")
    check_output(target, checkpoint)
    effective.keep_beside(target, ours=True)
    films = _calibration_films(quantise, calibration, calibration_films)
    make_folder(target.parent)
    graph = _graph(checkpoint, precision, batch, size, quantise, films, runtime=runtime)
    sidecar = write_onnx(graph, checkpoint, target)
    _print(sidecar, target, as_json)


@export.command()
@takes_config
@limits_films
def tensorrt(
    checkpoint: Checkpoint,
    out: OutFile = None,
    precision: Annotated[
        str | None,
        choice("precision", options.PRECISIONS, help="By default fp16, and fp32 under --quantise."),
    ] = None,
    batch: Annotated[
        str | None,
        typer.Option(
            "--batch-sizes",
            "--batch",
            help="Smallest, best and largest batch: min,opt,max; by default what is "
            "likely to fit --gpu-memory, or 8 GiB without it.",
        ),
    ] = None,
    size: Size = None,
    gpu_memory: Annotated[
        float | None,
        typer.Option(min=0.1, help="GiB of the GPU; an engine that does not fit is an error."),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(help="Architectures, for example sm_86,sm_89; by default all from sm_80 on."),
    ] = None,
    flavour: Annotated[
        str, choice("flavour", ("auto", "tensorrt", "tensorrt-rtx"), help="Which TensorRT builds.")
    ] = "auto",
    timing_cache: Annotated[
        Path | None, typer.Option(help="Reused and updated by the full TensorRT.")
    ] = None,
    version_compatible: Annotated[
        bool, typer.Option(help="Runs under later releases too; full TensorRT.")
    ] = False,
    hardware_compatible: Annotated[
        bool, typer.Option(help="Runs on any GPU from Ampere on; full TensorRT.")
    ] = False,
    plugin: Annotated[
        bool, typer.Option("--plugin", help="Attention by our own kernels; full TensorRT.")
    ] = False,
    quantise: Quantise = None,
    calibration: Calibration = None,
    calibration_films: CalibrationFilms = 64,
    as_json: options.AsJson = False,
    *,
    effective: Effective,
) -> None:
    """Checkpoint to a strongly typed engine, its ONNX graph beside it, and their sidecars.

    tensorrt-rtx builds without a GPU; the full TensorRT builds on the GPU that it builds for.

    Example: [bold]hmc-fast export tensorrt model.safetensors --target sm_89 --batch 1,8,32[/bold]
    """
    from hmc_fast.export.engine import EngineOptions, check_options, write_engine

    path = out or checkpoint.with_suffix(".engine")
    targets = tuple(part.strip() for part in target.split(",")) if target is not None else ()
    chosen = EngineOptions(
        flavour, targets, timing_cache, version_compatible, hardware_compatible, plugin, gpu_memory
    )
    if plugin and quantise is not None:
        raise UserError("--plugin and --quantise exclude each other: our kernels take no int8")
    check_options(chosen, checkpoint, path)
    effective.keep_beside(path, ours=True)
    films = _calibration_films(quantise, calibration, calibration_films)
    precision = precision or ("fp16" if quantise is None else "fp32")
    graph = _graph(checkpoint, precision, batch, size, quantise, films, engine=chosen)
    with progress_bar("percent") as report:
        sidecar = write_engine(graph, checkpoint, path, chosen, on_progress=report)
    _print(sidecar, path, as_json)


@export.command()
@takes_config
def kernels(
    checkpoint: Checkpoint,
    out: options.Out,
    precision: options.Precision = "fp16",
    size: Size = None,
    target: Annotated[
        str, typer.Option(help="Architectures, for example sm_86,sm_90.")
    ] = "sm_80,sm_86,sm_89,sm_90,sm_100,sm_120",
    check: Annotated[
        bool, typer.Option("--check", help="Launch those for this GPU and compare with fp64.")
    ] = False,
    as_json: options.AsJson = False,
    *,
    effective: Effective,
) -> None:
    """The attention kernels of a checkpoint as cubins, and a manifest for any launcher.

    They are what the TensorRT plugin embeds. Compiling needs no GPU.

    Example: [bold]hmc-fast export kernels model.safetensors --target sm_90 --out kernels[/bold]
    """
    from hmc_fast.export.aot import attention_calls, check_targets, read_manifest, write_kernels
    from hmc_fast.export.driver import check_kernels
    from hmc_fast.export.onnx_export import trace_checkpoint

    targets = check_targets([part.strip() for part in target.split(",")])
    effective.keep_beside(out, ours=True)
    with progress_bar("steps") as report:
        traced = trace_checkpoint(checkpoint, precision=precision, size=size, on_progress=report)
        calls = attention_calls(traced.program)
        manifest = write_kernels(calls, targets, checkpoint, precision, out)
    uses = check_kernels(out, read_manifest(out)) if check else []
    if as_json:
        print_json(
            {
                "folder": str(out),
                "kernels": [asdict(kernel) for kernel in manifest.kernels],
                "checks": [{"call": call, **asdict(use)} for call, use in uses],
            }
        )
    else:
        rows = [
            [
                kernel.call,
                kernel.architecture,
                "×".join(map(str, kernel.grid_per_image)) + " per image",
                str(kernel.threads),
                f"{kernel.shared_bytes / 1024:.0f}",
                kernel.file.name,
            ]
            for kernel in manifest.kernels
        ]
        header = ["attention", "target", "grid", "threads", "shared KiB", "file"]
        print_table(header, rows, title=f"{out}")
        for call, use in uses:
            console.print(f"{call} {use}", markup=False, highlight=False, soft_wrap=True)
    outside = [f"{call} {use}" for call, use in uses if not use.within]
    if outside:
        raise UserError(f"outside the error budget: {outside[0]}")


@export.command(name="triton-server")
@takes_config
def triton_server(
    source: Annotated[Path, typer.Argument(help="A checkpoint, an ONNX file or an engine.")],
    out: options.Out,
    name: Annotated[str | None, typer.Option(help="Of the model; by default its own.")] = None,
    version: Annotated[int, typer.Option(help="Of the model in the repository.")] = 1,
    instances: Annotated[int, typer.Option(help="Copies of the model on each device.")] = 1,
    device: Annotated[
        str, choice("device", ("gpu", "cpu"), help="What the server runs it on.")
    ] = "gpu",
    max_queue_delay: Annotated[
        int, typer.Option(help="Longest wait for a fuller batch, in microseconds.")
    ] = 2000,
    film_model: Annotated[
        str, typer.Option(help="Name of the model that takes films as files.")
    ] = "hmc_film",
    readers: Annotated[int, typer.Option(help="Processes that read films for it.")] = 1,
    allow_raw: options.AllowRaw = False,
    precision: Precision = "fp32",
    batch: Batch = "1,8,64",
    size: Size = None,
    as_json: options.AsJson = False,
    *,
    effective: Effective,
) -> None:
    """A model repository for NVIDIA Triton Inference Server: the model, and one that takes films.

    A checkpoint is exported to ONNX first; the options after --allow-raw are for that. The film
    model runs in the server's Python, which needs hmc-fast; hmc-fast score sends it films.

    Example: [bold]hmc-fast export triton-server model.onnx --out repository[/bold]
    """
    from hmc_fast.export import export_onnx
    from hmc_fast.export.serving import ServingOptions, served_name, write_model_repository
    from hmc_fast.export.sidecar import Profile

    chosen = ServingOptions(
        name, version, instances, device, max_queue_delay, film_model, readers, allow_raw
    )
    with tempfile.TemporaryDirectory() as folder, progress_bar("steps") as report:
        artefact = source
        if source.suffix == ".safetensors":
            artefact = Path(folder) / "model.onnx"
            export_onnx(
                source,
                artefact,
                precision=precision,
                profile=Profile.parse(batch),
                size=size,
                on_progress=report,
            )
        effective.keep_beside(out / served_name(artefact, chosen), ours=True)
        written = write_model_repository(artefact, out, chosen)
    if as_json:
        print_json({"folder": str(written)})
    else:
        console.print(f"model repository {written}", markup=False)


def _graph(
    checkpoint: Path,
    precision: str,
    batch: str | None,
    size: int | None,
    number_format: str | None,
    films: Sequence["Film"],
    *,
    runtime: str = "onnxruntime",
    engine: "EngineOptions | None" = None,
) -> "OnnxExport":
    """The graph, quantised where a ``number_format`` is given, calibrated on ``films``."""
    from hmc_fast.data import film_image
    from hmc_fast.export.engine import form_for_engine
    from hmc_fast.export.onnx_export import make_onnx
    from hmc_fast.export.quantisation_cost import MEASURED_FILMS, measure_cost
    from hmc_fast.export.quantize import quantise
    from hmc_fast.export.runtime import SESSIONS
    from hmc_fast.export.sidecar import Profile

    with progress_bar("steps") as report:
        graph = make_onnx(
            checkpoint,
            precision=precision,
            profile=None if batch is None else Profile.parse(batch),
            size=size,
            runtime=runtime,
            engine_form=None if engine is None else form_for_engine(engine, precision),
            plugin=engine is not None and engine.plugin,
            gpu_memory_gib=None if engine is None else _memory(engine, batch),
            on_progress=report,
        )
        if number_format is None:
            return graph
        preprocessing = graph.sidecar.preprocessing
        images = [
            preprocessing.normalise(film_image(film.path, preprocessing).image) for film in films
        ]
        graph = quantise(
            graph, images, number_format, on_image=lambda n: report("calibrating", n, len(images))
        )
        measured = min(MEASURED_FILMS, len(images)) * (1 + len(SESSIONS))
        return measure_cost(
            graph, checkpoint, images, on_image=lambda n: report("measuring", n, measured)
        )


def _memory(engine: "EngineOptions", batch: str | None) -> float | None:
    """GiB that the engine shall fit: the default is for the choice of batch sizes alone."""
    from hmc_fast.export.memory import DEFAULT_GPU_GIB

    return engine.gpu_memory_gib or (DEFAULT_GPU_GIB if batch is None else None)


def _calibration_films(number_format: str | None, folder: Path | None, count: int) -> list["Film"]:
    """So many films of the folder, evenly spread; none where nothing is quantised."""
    from hmc_fast.data import read_films

    if (number_format is None) != (folder is None):
        raise UserError("--quantise and --calibration go together: a format, and films for it")
    if folder is None:
        return []
    films = read_films(folder)
    return films[:: max(1, len(films) // count)][:count]


def _print(sidecar: "Sidecar", path: Path, as_json: bool) -> None:
    from hmc_fast.export.quantisation_cost import describe_cost

    for line, kept in describe_cost(sidecar):
        if not kept:
            errors.print(f"warning: {line}", style="yellow", markup=False, soft_wrap=True)
        elif not as_json:
            console.print(line, markup=False, highlight=False, soft_wrap=True)
    if as_json:
        print_json(sidecar.to_json())
        return
    from hmc_fast.export.memory import describe_build, not_fused

    size = sidecar.file.size_bytes / 2**20
    built = f" for {', '.join(sidecar.engine.targets)}" if sidecar.engine else ""
    console.print(
        f"{path}: {sidecar.model['name']}, {sidecar.numerics}, batch {sidecar.profile}, "
        f"{size:.1f} MiB{built}\ncheck it with: hmc-fast verify {path} --data DIR",
        markup=False,
        highlight=False,
        soft_wrap=True,
    )
    if sidecar.engine is not None:
        for line in describe_build(sidecar.engine, sidecar.profile):
            console.print(line, markup=False, highlight=False, soft_wrap=True)
        if not_fused(sidecar.engine):
            errors.print(
                "warning: attention that is not fused takes more memory and far more time; use "
                "--precision fp16 or bf16, or a builder that fuses it",
                style="yellow",
            )
