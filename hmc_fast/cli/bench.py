"""``hmc-fast bench``: the main job; the profiling commands are its subcommands."""

from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Annotated, Any

import typer

from hmc_fast.cli import options
from hmc_fast.cli.output import console, errors, print_json, print_table, progress_bar
from hmc_fast.errors import UserError


@dataclass(frozen=True)
class Preset:
    """Defaults that belong together."""

    model: str
    size: int
    folds: int
    epochs: int
    batch_size: int
    learning_rate: float


PRESETS = {
    "quick": Preset("hmc_net_resnet18", 128, 3, 4, 8, 3e-4),
    "small": Preset("hmc_net", 224, 5, 2, 8, 1e-4),
    "paper": Preset("hmc_net", 224, 5, 30, 16, 1e-4),
}
PHANTOM_PATIENTS = 24
PHANTOM_SIZE = 256


bench_app = typer.Typer(no_args_is_help=False, rich_markup_mode="rich")


@bench_app.callback(invoke_without_command=True)
def bench(
    context: typer.Context,
    data: Annotated[
        Path | None, typer.Option(help="MIAS folder; without it, phantoms are drawn.")
    ] = None,
    out: Annotated[
        Path | None, typer.Option(help="Folder for record, reports and folds; resumed if there.")
    ] = None,
    preset: Annotated[
        str, typer.Option(help=f"Defaults of the options below: {', '.join(PRESETS)}.")
    ] = "quick",
    model: Annotated[str | None, typer.Option(help="Model to measure.")] = None,
    size: Annotated[int | None, typer.Option(help="Side of the image, a multiple of 32.")] = None,
    also_size: Annotated[
        list[int] | None, typer.Option(help="A further size, for speed and memory; repeatable.")
    ] = None,
    folds: Annotated[int | None, typer.Option(help="Number of patient-disjoint folds.")] = None,
    epochs: Annotated[int | None, typer.Option(help="Training epochs per fold.")] = None,
    weights: options.Weights = "none",
    task: options.TaskName = "malignant",
    implementation: Annotated[
        list[str] | None, typer.Option(help="eager, compiled or triton; repeatable, default all.")
    ] = None,
    precision: Annotated[
        list[str] | None, typer.Option(help="fp32, bf16 or fp16; repeatable.")
    ] = None,
    seconds: Annotated[float, typer.Option(help="Least time per interleaved measurement.")] = 5.0,
    seed: options.Seed = 0,
    as_json: options.AsJson = False,
) -> None:
    """Latency, throughput, memory and accuracy across folds, a row per implementation × precision.

    Trains the model on patient-disjoint folds, then measures every candidate on the same
    checkpoints, parity first. Writes record.jsonl, report.md and report.html.

    Examples: [bold]hmc-fast bench[/bold] (phantoms, minutes on two cores);
    [bold]hmc-fast bench --data mias --preset small --weights trunk.safetensors[/bold]

    The subcommands profile operators and models; each has its own --help.
    """
    if context.invoked_subcommand is not None:
        return
    from hmc_fast.bench import BenchOptions, run_bench, write_reports
    from hmc_fast.bench.candidates import IMPLEMENTATIONS
    from hmc_fast.bench.record import write_record
    from hmc_fast.bench.report import table
    from hmc_fast.data import read_mias
    from hmc_fast.files import make_folder
    from hmc_fast.reporting import PHANTOM_NOTICE
    from hmc_fast.training import TrainingConfig

    defaults = _preset(preset)
    chosen = BenchOptions(
        model=options.model_name(model or defaults.model),
        training=TrainingConfig(
            task=task,
            size=defaults.size if size is None else size,
            epochs=defaults.epochs if epochs is None else epochs,
            batch_size=defaults.batch_size,
            learning_rate=defaults.learning_rate,
            weights=options.trunk_weights(weights),
            seed=seed,
        ),
        folds=defaults.folds if folds is None else folds,
        extra_sizes=tuple(also_size or ()),
        implementations=tuple(implementation or IMPLEMENTATIONS),
        precisions=tuple(precision) if precision else None,
        seconds=seconds,
    )
    films = None if data is None else read_mias(data)
    folder = make_folder(out or Path("runs") / f"bench-{datetime.now():%Y%m%d-%H%M%S}")
    films = _phantoms(folder / "phantoms") if films is None else films
    description = {
        "name": "procedural phantoms" if data is None else f"MIAS-style folder {data.name}",
        "phantoms": data is None,
        "films": len(films),
        "patients": len({film.patient_id for film in films}),
    }
    with progress_bar("films") as report:
        record = run_bench(
            chosen, films, description, folder, on_training=report, on_stage=say_stage
        )
    write_record(folder / "record.jsonl", record)
    markdown, html = write_reports(record, folder)
    if as_json:
        from dataclasses import asdict

        print_json(asdict(record))
        return
    if description["phantoms"]:
        console.print(PHANTOM_NOTICE, style="yellow")
    print_table(*table(record), title=f"{chosen.model}, {record.protocol}-disjoint folds")
    for row in record.rows:
        if row.reason:
            console.print(
                f"{row.size}² {row.implementation} {row.precision}: {row.status}: {row.reason}",
                markup=False,
                highlight=False,
            )
    console.print(
        f"record {folder / 'record.jsonl'}\nreport {markdown}\n       {html}", markup=False
    )


def _preset(name: str) -> Preset:
    if name not in PRESETS:
        raise UserError(f"unknown preset {name!r}; choose one of {', '.join(PRESETS)}")
    return PRESETS[name]


def _phantoms(folder: Path) -> list[Any]:
    from hmc_fast.data import read_mias, write_phantoms

    if not folder.exists():
        write_phantoms(folder, PHANTOM_PATIENTS, PHANTOM_SIZE)
    return read_mias(folder)


def say_stage(stage: str) -> None:
    """Tell on stderr what is being done."""
    errors.print(stage, style="dim", highlight=False)
