"""``--max-pixels``, which every command that reads films has."""

import inspect
from collections.abc import Callable
from functools import wraps
from typing import Annotated, Any

import typer

MaxPixels = Annotated[
    int | None,
    typer.Option(
        "--max-pixels",
        min=1,
        help="Films of more pixels are refused before they are decoded; by default of more than "
        "100 million.",
    ),
]


def limits_films(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command ``--max-pixels``, which holds while it runs and in processes that it starts.

    The command itself does not take it, see :mod:`hmc_fast.data.limits`.
    """
    signature = inspect.signature(command, eval_str=True)
    option = inspect.Parameter(
        "max_pixels", inspect.Parameter.KEYWORD_ONLY, default=None, annotation=MaxPixels
    )
    parameters = [*signature.parameters.values(), option]

    @wraps(command)
    def run(*, max_pixels: int | None, **values: Any) -> None:
        from hmc_fast.data.limits import pixel_budget

        with pixel_budget(max_pixels):
            command(**values)

    run.__signature__ = signature.replace(parameters=parameters)  # type: ignore[attr-defined]
    run.__annotations__ = {p.name: p.annotation for p in parameters}
    return run
