"""``hmc-fast bench``: the main job."""

from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hmc_fast.cli import bench_options, options, training_options
from hmc_fast.cli.choices import choice
from hmc_fast.cli.config_file import Effective, takes_config
from hmc_fast.cli.film_limit import limits_films
from hmc_fast.cli.output import console, print_json, print_table, progress, progress_bar

if TYPE_CHECKING:
    from hmc_fast.bench.record import Record


@dataclass(frozen=True)
class Preset:
    """Defaults that belong together; ``head_epochs`` for models with a lesion head."""

    model: str
    size: int
    folds: int
    epochs: int
    head_epochs: int
    batch_size: int
    learning_rate: float


PRESETS = {
    "quick": Preset("hmc_net_resnet18_lesions", 192, 3, 4, 4, 8, 3e-4),
    "small": Preset("hmc_net_lesions", 512, 5, 2, 0, 8, 1e-4),
    "full": Preset("hmc_net_lesions", 1024, 5, 2, 2, 8, 1e-4),
    "paper": Preset("hmc_net", 224, 5, 30, 30, 16, 1e-4),
}
BENCH_FILES = ("record.jsonl", "report.*", "trace-*.json")
"""What every bench command writes into its folder; not the study of the main job."""
PHANTOM_PATIENTS = 24
PHANTOM_SIZE = 256


@takes_config
@limits_films
def bench(
    context: typer.Context,
    data: Annotated[
        Path | None, typer.Option(help="MIAS folder or CSV table; without it, phantoms are drawn.")
    ] = None,
    out: bench_options.BenchOut = None,
    preset: Annotated[
        str, choice("preset", tuple(PRESETS), help="Defaults of model, size, folds and epochs.")
    ] = "quick",
    model: training_options.OptionalModel = None,
    size: Annotated[int | None, typer.Option(help="Rows of the image, a multiple of 32.")] = None,
    also_size: Annotated[
        list[int] | None, typer.Option(help="A further size, for speed and memory; repeatable.")
    ] = None,
    folds: Annotated[int | None, typer.Option(help="Number of patient-disjoint folds.")] = None,
    epochs: Annotated[
        int | None,
        typer.Option(
            help="Passes over the training films per fold; 0 keeps a lesion head as fitted."
        ),
    ] = None,
    weights: training_options.Weights = "none",
    task: training_options.TaskName = "malignant",
    peer: bench_options.ModelPeers = None,
    precision: bench_options.Precisions = None,
    seconds: Annotated[
        float, typer.Option(min=0.01, help="Least time per interleaved measurement.")
    ] = 5.0,
    seed: options.Seed = 0,
    as_json: options.AsJson = False,
    *,
    effective: Effective,
) -> None:
    """Latency, throughput, memory and accuracy across folds, a row per peer and precision.

    Trains the model on patient-disjoint folds, then measures every peer on the same checkpoints,
    parity first. Peers are eager, compiled, cpu, cpu_prepared, triton, onnxruntime, openvino,
    tensorrt and tensorrt_rtx unless named. What cannot run here is a row with its reason, and an
    engine that can be built all the same tells its size and memory.
    Writes record.jsonl, report.md and report.html.

    Examples: [bold]hmc-fast bench[/bold] (phantoms, minutes on two cores);
    [bold]hmc-fast bench --data mias --preset small --weights trunk.safetensors[/bold]

    The subcommands time operators and models; each has its own --help.
    """
    if context.invoked_subcommand is not None:
        return
    from hmc_fast.bench.jobs.folds import DEFAULT_PEERS, FoldsOptions, run_folds
    from hmc_fast.bench.record import RECORD_FILE, write_record
    from hmc_fast.data import read_films
    from hmc_fast.models import model_entry
    from hmc_fast.training import TrainingConfig

    defaults = PRESETS[preset]
    name = model or defaults.model
    passes: dict[str, Any]
    if model_entry(name).config.lesion_head:
        passes = {"head_epochs": defaults.head_epochs if epochs is None else epochs}
    else:
        passes = {"epochs": defaults.epochs if epochs is None else epochs}
    chosen = FoldsOptions(
        model=name,
        training=TrainingConfig(
            task=task,
            size=defaults.size if size is None else size,
            **passes,
            batch_size=defaults.batch_size,
            learning_rate=defaults.learning_rate,
            weights=training_options.trunk_weights(weights),
            seed=seed,
        ),
        folds=defaults.folds if folds is None else folds,
        extra_sizes=tuple(also_size or ()),
        peers=tuple(peer or DEFAULT_PEERS),
        precisions=tuple(precision) if precision else None,
        seconds=seconds,
    )
    films = None if data is None else read_films(data)
    folder = bench_folder(out, "bench")
    effective.keep_in(folder, *BENCH_FILES)
    films = _phantoms(folder / "phantoms") if films is None else films
    description = {
        "name": "procedural phantoms" if data is None else f"MIAS-style folder {data.name}",
        "phantoms": data is None,
        "films": len(films),
        "patients": len({film.patient_id for film in films}),
    }
    with progress_bar("films") as report:
        record = run_folds(
            chosen, films, description, folder, on_training=report, on_stage=say_stage
        )
    write_record(folder / RECORD_FILE, record)
    show(record, "bench", folder, as_json=as_json)


def bench_folder(out: Path | None, job: str) -> Path:
    """The folder for a run's record and reports, made."""
    from hmc_fast.files import make_folder

    return make_folder(out or Path("runs") / f"{job}-{datetime.now():%Y%m%d-%H%M%S}")


def show(record: "Record", name: str, folder: Path, *, as_json: bool) -> None:
    """Write the reports of a run and print its record, as tables or as JSON."""
    from hmc_fast.bench.record import RECORD_FILE
    from hmc_fast.bench.report.pages import result_sections, write_reports
    from hmc_fast.reporting import PHANTOM_NOTICE

    markdown, html = write_reports([(name, record)], folder)
    if as_json:
        print_json(asdict(record))
        return
    if record.study is not None and record.study.data["phantoms"]:
        console.print(PHANTOM_NOTICE, style="yellow")
    for section in result_sections(record):
        if section.cells is not None:
            print_table(*section.cells, title=section.title)
        for line in [*section.lines, *(f"{name}: {text}" for name, text in section.notes)]:
            console.print(line, markup=False, highlight=False)
    console.print(f"record {folder / RECORD_FILE}\nreport {markdown}\n       {html}", markup=False)


def say_stage(stage: str) -> None:
    """Tell on stderr what is being done."""
    progress.print(stage, style="dim", highlight=False)


def _phantoms(folder: Path) -> list[Any]:
    from hmc_fast.data import read_mias, write_phantoms

    if not folder.exists():
        write_phantoms(folder, PHANTOM_PATIENTS, PHANTOM_SIZE)
    return read_mias(folder)
