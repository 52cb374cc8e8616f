"""``hmc-fast bench kernels``, ``model`` and ``targets``: where the time goes."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hmc_fast.cli import bench_options, options
from hmc_fast.cli.bench import BENCH_FILES, bench_folder, say_stage, show
from hmc_fast.cli.choices import choice
from hmc_fast.cli.config_file import Effective, takes_config
from hmc_fast.cli.output import console, print_json, print_table, progress_bar

if TYPE_CHECKING:
    from hmc_fast.bench.run import Plan

PresetName = Annotated[
    str | None,
    choice(
        "preset",
        ("cpu", "gpu", "targets"),
        help="What is measured; by default what fits this machine.",
    ),
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


@takes_config
def kernels(
    case: Annotated[
        list[str] | None,
        typer.Option(help="hsa_c3@1024x8, msca_c5@224x1, hsa_block_c3@512x4, …; repeatable."),
    ] = None,
    peer: bench_options.OperatorPeers = None,
    precision: bench_options.Precisions = None,
    only_pass: Annotated[
        list[str] | None,
        choice("pass", ("forward", "backward", "both"), help="What is timed; repeatable."),
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
    out: bench_options.BenchOut = None,
    list_only: ListOnly = False,
    as_json: options.AsJson = False,
    *,
    effective: Effective,
) -> None:
    """Time the attention operators and blocks against every peer, parity first.

    Times (p20, p50, p80), TFLOP/s, share of the ceiling measured in the same run, memory, error in
    units of the budget and speed-up. What a peer cannot do is a row with its reason.

    Examples: [bold]hmc-fast bench kernels --list[/bold];
    [bold]hmc-fast bench kernels --case hsa_c3@1024x8 --peer triton --peer flex[/bold]
    """
    from hmc_fast.bench.cases import PASSES, check_passes
    from hmc_fast.bench.jobs.presets import make_plan
    from hmc_fast.bench.jobs.traces import write_traces

    plan = make_plan(
        "kernels",
        preset,
        cases=case,
        precisions=precision,
        peers=peer,
        graphs=graphs,
        seconds=seconds,
        minutes=minutes,
        list_only=list_only,
    )
    passes = check_passes(only_pass or PASSES)
    if only_pass:
        plan = replace(plan, cases=tuple(replace(c, tasks=passes) for c in plan.cases))
    folder = _run(plan, out, effective, list_only=list_only, as_json=as_json)
    if folder is not None and profile:
        commands = write_traces(plan, folder, on_stage=say_stage)
        for command in () if as_json else commands:
            console.print(command, markup=False, highlight=False, soft_wrap=True)


@takes_config
def model(
    case: Annotated[
        list[str] | None,
        typer.Option(help="hmc_net@1024x8, resnet50@512x16/training, …; repeatable."),
    ] = None,
    peer: bench_options.ModelPeers = None,
    precision: bench_options.Precisions = None,
    preset: PresetName = None,
    graphs: Graphs = True,
    seconds: Seconds = None,
    minutes: Minutes = None,
    out: bench_options.BenchOut = None,
    list_only: ListOnly = False,
    as_json: options.AsJson = False,
    *,
    effective: Effective,
) -> None:
    """Time whole models, inference and training step, over image sizes and batches.

    Latency, throughput, peak memory, the share of attention with its Amdahl bound, memory over
    resolution and latency over batch.

    Examples: [bold]hmc-fast bench model --list[/bold];
    [bold]hmc-fast bench model --case hmc_net@224x1 --case resnet50@224x1[/bold]
    """
    from hmc_fast.bench.jobs.presets import make_plan

    plan = make_plan(
        "model",
        preset,
        cases=case,
        precisions=precision,
        peers=peer,
        graphs=graphs,
        seconds=seconds,
        minutes=minutes,
        list_only=list_only,
    )
    _run(plan, out, effective, list_only=list_only, as_json=as_json)


@takes_config
def targets(
    preset: PresetName = None,
    seconds: Seconds = None,
    minutes: Minutes = None,
    out: bench_options.BenchOut = None,
    list_only: ListOnly = False,
    as_json: options.AsJson = False,
    *,
    effective: Effective,
) -> None:
    """Measure everything that the speed targets name: operators, block and models in one record.

    Stops by itself after nine minutes. `--preset gpu` adds the other stages and sizes as far as
    the time goes.

    Example: [bold]hmc-fast bench targets --out bench-h200[/bold]
    """
    from hmc_fast.bench.jobs.presets import make_plan

    plan = make_plan(
        "targets", preset or "targets", seconds=seconds, minutes=minutes, list_only=list_only
    )
    _run(plan, out, effective, list_only=list_only, as_json=as_json)


def _run(
    plan: "Plan", out: Path | None, effective: Effective, *, list_only: bool, as_json: bool
) -> Path | None:
    """Measure ``plan`` and return its folder, or list it and return None."""
    from hmc_fast.bench.run import run_plan

    if list_only:
        if as_json:
            print_json(plan.to_json())
            return None
        print_table(["case", "measured", "peers"], plan.lines())
        console.print(f"at most {plan.minutes:g} minutes; what is left then is a row that says so")
        return None
    folder = bench_folder(out, f"bench-{plan.job}")
    effective.keep_in(folder, *BENCH_FILES)
    with progress_bar("cases") as report:
        record = run_plan(plan, folder, on_stage=say_stage, on_case=report)
    show(record, plan.job, folder, as_json=as_json)
    return folder
