"""``hmc-fast verify``: is an exported artefact the model it was made from?"""

from pathlib import Path
from typing import Annotated

import typer

from hmc_fast.cli import options
from hmc_fast.cli.config_file import Effective, takes_config
from hmc_fast.cli.film_limit import limits_films
from hmc_fast.cli.output import console, print_json, print_table, progress_bar


@takes_config
@limits_films
def verify(
    artefact: Annotated[Path, typer.Argument(help="An ONNX file or an engine of ours.")],
    data: options.Data,
    checkpoint: Annotated[
        Path | None, typer.Option(help="By default the one that the sidecar names.")
    ] = None,
    films: Annotated[
        int | None, typer.Option(min=1, help="Use so many, evenly spread; by default all.")
    ] = None,
    max_logit: Annotated[
        float | None, typer.Option(min=0, help="Largest difference of a logit.")
    ] = None,
    max_auc: Annotated[
        float | None, typer.Option(min=0, help="Largest difference of the AUC.")
    ] = None,
    batch_size: options.BatchSize = 8,
    require_engine: Annotated[
        bool, typer.Option(help="Fail where the engine itself cannot run here.")
    ] = False,
    record: Annotated[bool, typer.Option(help="Note a passed verification in the sidecar.")] = True,
    out: Annotated[Path | None, typer.Option(help="JSON file for the result.")] = None,
    as_json: options.AsJson = False,
    *,
    effective: Effective,
) -> None:
    """Run films through torch, ONNX Runtime and the engine, and compare logits, decisions and AUC.

    Exit code 1 where a difference is past its bound. What cannot run here is a row that says why.

    Example: [bold]hmc-fast verify model.onnx --data mias --films 40[/bold]
    """
    from dataclasses import asdict, replace

    from hmc_fast.data import read_films
    from hmc_fast.export.sidecar import read_sidecar, record_verification, sidecar_path
    from hmc_fast.export.verify import BOUNDS, checks
    from hmc_fast.export.verify import verify as run_verification
    from hmc_fast.files import refuse_overwrite, write_json

    sidecar = read_sidecar(artefact)
    if out is not None:
        origin = checkpoint or artefact.parent / sidecar.checkpoint.name
        refuse_overwrite(out, artefact, sidecar_path(artefact), origin, data)
        effective.keep_beside(out)
    given = {"logit": max_logit, "auc": max_auc}
    changes = {name: value for name, value in given.items() if value is not None}
    bounds = replace(BOUNDS[sidecar.numerics], **changes)
    with progress_bar("films") as report:
        result = run_verification(
            artefact,
            read_films(data),
            checkpoint=checkpoint,
            bounds=bounds,
            max_films=films,
            batch_size=batch_size,
            on_progress=report,
        )
    passed = result.passed and (result.artefact_ran or not require_engine)
    if out is not None:
        write_json(out, result.to_json())
    if record and passed:
        verified = {key: result.to_json()[key] for key in ("created", "films", "bounds", "rows")}
        record_verification(artefact, sidecar, verified)
    if as_json:
        print_json(result.to_json())
    else:
        header = ["implementation", "status", "max |Δlogit|", "mean |Δlogit|", "flips"]
        header += ["beyond bound", "AUC", "|ΔAUC|", "allowed"]
        print_table(
            header,
            [_cells(asdict(row)) for row in result.rows],
            title=f"{artefact.name}, {sidecar.numerics}, {result.films} films of "
            f"{result.patients} patients, bound {bounds.logit:g} on a logit",
        )
        for row in result.rows[1:]:
            for check in checks(row, bounds):
                _say(f"{check.verdict} {row.implementation}: {check.text}")
            if row.status in ("failed", "not run"):
                _say(f"{row.status.upper()} {row.implementation}: {row.reason}")
        if result.films_of_training_patients:
            _say(
                f"{result.films_of_training_patients} of the films are of patients that the model "
                "was trained on: they compare runtimes, their AUC says nothing of new patients"
            )
        if not result.artefact_ran:
            console.print(f"{artefact.name} itself did NOT run here.", style="yellow")
    if not passed:
        raise typer.Exit(1)


def _say(line: str) -> None:
    console.print(line, markup=False, highlight=False, soft_wrap=True)


def _cells(row: dict[str, object]) -> list[str]:
    figures = ["max_logit_difference", "mean_logit_difference", "flips", "flips_beyond"]
    figures += ["auc", "auc_difference", "auc_allowed"]
    formats = [".1e", ".1e", "d", "d", ".4f", ".4f", ".4f"]
    values = [
        "–" if row[name] is None else format(row[name], form)
        for name, form in zip(figures, formats, strict=True)
    ]
    return [str(row["implementation"]), str(row["status"]), *values]
