"""``hmc-fast bench kernels``, ``model`` and ``targets``: where the time goes."""

from dataclasses import asdict, replace
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hmc_fast.cli import options
from hmc_fast.cli.bench import say_stage
from hmc_fast.cli.output import console, print_json, print_table, progress_bar
from hmc_fast.errors import UserError

if TYPE_CHECKING:
    from hmc_fast.bench.kernel_bench import KernelBenchOptions
    from hmc_fast.bench.model_bench import ModelBenchOptions
    from hmc_fast.bench.presets import ProfilePreset
    from hmc_fast.bench.profile_record import ProfileRecord
    from hmc_fast.bench.session import ProfilePlan

PresetName = Annotated[
    str | None,
    typer.Option("--preset", help="cpu, gpu or targets; what fits this machine by default."),
]
ProfileOut = Annotated[
    Path | None, typer.Option("--out", help="Folder for the record and the reports.")
]
Seconds = Annotated[
    float | None, typer.Option(min=0.01, help="Time for each measurement of all peers.")
]
Minutes = Annotated[
    float | None, typer.Option(min=0.1, help="Stop here; what is left is a row that says so.")
]
ListOnly = Annotated[
    bool, typer.Option("--list", help="Print what would be measured, and measure nothing.")
]
Graphs = Annotated[bool, typer.Option(help="Time fast calls as CUDA graphs too (on a GPU).")]


def kernels(
    case: Annotated[
        list[str] | None,
        typer.Option(help="hsa_c3@1024x8, msca_c5@224x1, hsa_block_c3@512x4, …; repeatable."),
    ] = None,
    backend: Annotated[
        list[str] | None,
        typer.Option(
            help="triton, sdpa_flash, sdpa_cudnn, sdpa_efficient, sdpa_math, flex, compiled or "
            "eager; repeatable, default all."
        ),
    ] = None,
    precision: Annotated[
        list[str] | None,
        typer.Option("--precision", "--dtype", help="bf16, fp16 or fp32; repeatable."),
    ] = None,
    only_pass: Annotated[
        list[str] | None, typer.Option("--pass", help="forward, backward or both; repeatable.")
    ] = None,
    preset: PresetName = None,
    graphs: Graphs = True,
    seconds: Seconds = None,
    minutes: Minutes = None,
    profile: Annotated[
        bool,
        typer.Option(
            "--profile", help="Also write a PyTorch trace of every case, and print its ncu command."
        ),
    ] = False,
    out: ProfileOut = None,
    list_only: ListOnly = False,
    as_json: options.AsJson = False,
) -> None:
    """Time the attention operators and blocks against every alternative, parity first.

    Times (p20, p50, p80), TFLOP/s, share of the ceiling measured in the same run, memory, error in
    units of the budget and speed-up. What a backend cannot do is a row with its reason.

    Examples: [bold]hmc-fast bench kernels --list[/bold];
    [bold]hmc-fast bench kernels --case hsa_c3@1024x8 --backend triton --backend flex[/bold]
    """
    from hmc_fast.bench.session import ProfilePlan

    chosen = _preset(preset, seconds, minutes, list_only=list_only)
    plan = ProfilePlan(
        kernels=_kernel_options(chosen, case, backend, precision, only_pass, graphs),
        minutes=chosen.minutes,
    )
    _run(plan, out, "kernels", list_only=list_only, as_json=as_json, profile=profile)


def model(
    case: Annotated[
        list[str] | None,
        typer.Option(help="hmc_net@1024x8, resnet50@512x16/training, …; repeatable."),
    ] = None,
    implementation: Annotated[
        list[str] | None,
        typer.Option(
            help="triton, triton_compiled, eager, compiled, compiled_sdpa, compiled_flex or "
            "onnxruntime; repeatable."
        ),
    ] = None,
    precision: Annotated[
        str | None, typer.Option("--precision", "--dtype", help="bf16, fp16 or fp32.")
    ] = None,
    preset: PresetName = None,
    graphs: Graphs = True,
    seconds: Seconds = None,
    minutes: Minutes = None,
    out: ProfileOut = None,
    list_only: ListOnly = False,
    as_json: options.AsJson = False,
) -> None:
    """Time whole models, inference and training step, over image sizes and batches.

    Latency, throughput, peak memory, the share of attention with its Amdahl bound, memory over
    resolution and latency over batch.

    Examples: [bold]hmc-fast bench model --list[/bold];
    [bold]hmc-fast bench model --case hmc_net@224x1 --case resnet50@224x1[/bold]
    """
    from hmc_fast.bench.session import ProfilePlan

    chosen = _preset(preset, seconds, minutes, list_only=list_only)
    plan = ProfilePlan(
        models=_model_options(chosen, case, implementation, precision, graphs),
        minutes=chosen.minutes,
    )
    _run(plan, out, "model", list_only=list_only, as_json=as_json)


def targets(
    preset: PresetName = None,
    seconds: Seconds = None,
    minutes: Minutes = None,
    out: ProfileOut = None,
    list_only: ListOnly = False,
    as_json: options.AsJson = False,
) -> None:
    """Measure everything that the speed targets name: operators, block and models in one record.

    Stops by itself after nine minutes. `--preset gpu` adds the other stages and sizes as far as
    the time goes.

    Example: [bold]hmc-fast bench targets --out bench-h200[/bold]
    """
    from hmc_fast.bench.session import ProfilePlan

    chosen = _preset(preset or "targets", seconds, minutes, list_only=list_only)
    plan = ProfilePlan(
        kernels=_kernel_options(chosen, None, None, None, None, True),
        models=_model_options(chosen, None, None, None, True),
        minutes=chosen.minutes,
    )
    _run(plan, out, "targets", list_only=list_only, as_json=as_json)


def _preset(
    name: str | None, seconds: float | None, minutes: float | None, *, list_only: bool
) -> "ProfilePreset":
    import torch

    from hmc_fast.bench.presets import profile_preset

    has_gpu = torch.cuda.is_available()
    name = name or ("gpu" if has_gpu else "cpu")
    chosen = profile_preset(name)
    if chosen.needs_gpu and not has_gpu and not list_only:
        raise UserError(
            f"the cases of {name} need an NVIDIA GPU and would take hours without: use --list to "
            "see them, or --preset cpu"
        )
    if seconds is not None:
        chosen = replace(chosen, seconds=seconds)
    return chosen if minutes is None else replace(chosen, minutes=minutes)


def _kernel_options(
    chosen: "ProfilePreset",
    cases: list[str] | None,
    backends: list[str] | None,
    precisions: list[str] | None,
    passes: list[str] | None,
    graphs: bool,
) -> "KernelBenchOptions":
    from hmc_fast.bench.cases import parse_case
    from hmc_fast.bench.kernel_bench import KernelBenchOptions
    from hmc_fast.bench.work import PASSES, check_pass

    return KernelBenchOptions(
        cases=tuple(parse_case(name) for name in cases or chosen.cases),
        precisions=tuple(precisions or [chosen.precision]),
        peers=tuple(backends or chosen.peers),
        passes=tuple(check_pass(name) for name in passes or PASSES),
        graphs=graphs,
        seconds=chosen.seconds,
    )


def _model_options(
    chosen: "ProfilePreset",
    cases: list[str] | None,
    implementations: list[str] | None,
    precision: str | None,
    graphs: bool,
) -> "ModelBenchOptions":
    from hmc_fast.bench.model_bench import ModelBenchOptions
    from hmc_fast.bench.model_cases import parse_model_case

    return ModelBenchOptions(
        cases=tuple(parse_model_case(name) for name in cases or chosen.model_cases),
        precision=precision or chosen.precision,
        implementations=tuple(implementations or chosen.implementations),
        graphs=graphs,
        seconds=2 * chosen.seconds,
    )


def _run(
    plan: "ProfilePlan",
    out: Path | None,
    name: str,
    *,
    list_only: bool,
    as_json: bool,
    profile: bool = False,
) -> None:
    if list_only:
        _print_plan(plan, as_json)
        return
    from hmc_fast.bench.profile_report import write_profile_reports
    from hmc_fast.bench.session import run_profile

    folder = out or Path("runs") / f"bench-{name}-{datetime.now():%Y%m%d-%H%M%S}"
    with progress_bar("cases") as report:
        record = run_profile(plan, folder, on_stage=say_stage, on_case=report)
    markdown, html = write_profile_reports([(name, record)], folder)
    commands = _write_traces(plan, folder) if profile else []
    if as_json:
        print_json(record_json(record))
        return
    print_record(record)
    for command in commands:
        console.print(command, markup=False, highlight=False, soft_wrap=True)
    console.print(
        f"record {folder / 'record.jsonl'}\nreport {markdown}\n       {html}", markup=False
    )


def record_json(record: "ProfileRecord") -> dict[str, object]:
    """A record as one JSON document."""
    return asdict(record)


def print_record(record: "ProfileRecord") -> None:
    """The tables of a record on stdout."""
    from hmc_fast.bench.profile_tables import amdahl_lines, case_tables, model_table, reasons

    for table in case_tables(record):
        print_table(*table.cells, title=table.title)
        for floor in table.floors:
            console.print(floor, markup=False, highlight=False)
    header, cells = model_table(record)
    if cells:
        print_table(header, cells, title="whole models")
    for line in amdahl_lines(record):
        console.print(line, markup=False, highlight=False)
    for what, status, reason in reasons(record):
        console.print(f"{what}: {status}: {reason}", markup=False, highlight=False)


def _print_plan(plan: "ProfilePlan", as_json: bool) -> None:
    if as_json:
        print_json(plan.to_json())
        return
    print_table(["case", "measured", "peers"], [list(line) for line in plan.lines()])
    console.print(f"at most {plan.minutes:g} minutes; what is left then is a row that says so")


def _write_traces(plan: "ProfilePlan", folder: Path) -> list[str]:
    from hmc_fast.bench.traces import write_traces

    assert plan.kernels is not None
    return write_traces(plan.kernels, folder, on_stage=say_stage)
