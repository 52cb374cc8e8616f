"""``hmc-fast phantoms``: draw the embedded demonstration data."""

from typing import Annotated

import typer

from hmc_fast.cli import options
from hmc_fast.cli.output import console
from hmc_fast.errors import UserError


def phantoms(
    out: options.Out,
    patients: Annotated[int, typer.Option(help="Two films each.")] = 24,
    size: Annotated[int, typer.Option(help="Side of a film in pixels.")] = 256,
    seed: Annotated[int, typer.Option(min=0, help="The same seed draws the same films.")] = 0,
) -> None:
    """Draw procedural mammogram phantoms into a folder laid out like MIAS.

    Example: [bold]hmc-fast phantoms --out phantoms[/bold]
    """
    from hmc_fast.data import write_phantoms

    if patients < 1 or not 32 <= size <= 4096:
        raise UserError("phantoms need at least 1 patient and a size from 32 to 4096 pixels")
    write_phantoms(out, patients, size, seed)
    console.print(f"{2 * patients} phantoms in {out}", markup=False)
