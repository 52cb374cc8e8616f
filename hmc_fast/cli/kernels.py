"""``hmc-fast kernels``: what the shipped tiles cost, and which would be faster here."""

from pathlib import Path
from typing import Annotated

import typer

from hmc_fast.cli import options
from hmc_fast.cli.config_file import Effective, takes_config
from hmc_fast.cli.output import console, print_json, print_table, progress_bar
from hmc_fast.errors import UserError
from hmc_fast.files import write_json, write_text

app = typer.Typer(
    help="The fused kernels: their resources by architecture, and tuning.", no_args_is_help=True
)


@app.command()
@takes_config
def resources(
    architecture: Annotated[
        list[str] | None,
        typer.Option(
            "--target", "--architecture", help="sm_80, sm_86, …; repeatable, default all."
        ),
    ] = None,
    kernel: Annotated[
        list[str] | None,
        typer.Option(help="attention_forward, delta, …; repeatable, default all."),
    ] = None,
    defaults_only: Annotated[
        bool, typer.Option("--defaults-only", help="Leave out the next best tiles.")
    ] = False,
    out: Annotated[Path | None, typer.Option(help="Also write a Markdown table here.")] = None,
    as_json: options.AsJson = False,
    *,
    effective: Effective,
) -> None:
    """Build every shipped tile for its architecture, without a GPU: registers, spills, memory.

    Exit code 1 where a tile does not build, does not fit, or a default tile spills.

    Example: [bold]hmc-fast kernels resources --architecture sm_90[/bold]
    """
    from hmc_fast.kernels.building import gate

    chosen = architecture or list(gate.ARCHITECTURES)
    if out is not None:
        effective.keep_beside(out, ours=gate.is_table(out))
    with progress_bar("tiles") as progress:
        tiles = gate.check_tiles(
            chosen, kernel or (), defaults_only=defaults_only, progress=progress
        )
    if out is not None:
        write_text(out, gate.as_markdown(tiles))
    if as_json:
        print_json([tile.to_json() for tile in tiles])
    else:
        for name in chosen:
            rows = [tile.cells() for tile in tiles if tile.architecture == name]
            print_table(list(gate.HEADER), rows, title=name)
    faulty = [tile for tile in tiles if tile.faults]
    if faulty:
        first = faulty[0]
        raise UserError(
            f"{len(faulty)} of {len(tiles)} builds fail; the first: {first.architecture} "
            f"{first.kernel} ({first.problem}; {first.tile}): {'; '.join(first.faults)}"
        )


@app.command()
@takes_config
def tune(
    out: Annotated[Path, typer.Option(help="The tile file to propose, for review.")],
    *,
    effective: Effective,
) -> None:
    """Time tiles on this GPU and propose a tile file; nothing that is installed changes.

    Example: [bold]hmc-fast kernels tune --out proposed_sm_90.json[/bold]
    """
    import torch

    if not torch.cuda.is_available():
        raise UserError("kernels tune: needs an NVIDIA GPU; torch sees none here")
    from triton.testing import do_bench

    from hmc_fast.kernels.building.tuning import propose_tiles

    effective.keep_beside(out)
    with progress_bar("kernels") as progress:
        document = propose_tiles(
            torch.device("cuda", torch.cuda.current_device()),
            lambda call: float(do_bench(call, return_mode="median")),
            progress=progress,
        )
    write_json(out, document)
    console.print(f"Proposed tiles: {out}. Review it, then put it into kernels/fused/tuned/.")
