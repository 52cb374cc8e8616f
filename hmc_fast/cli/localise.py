"""``hmc-fast localise``: how good are the maps."""

from collections import defaultdict
from pathlib import Path
from typing import Annotated, Any

import typer

from hmc_fast.cli import options
from hmc_fast.cli.choices import choice
from hmc_fast.cli.config_file import Effective, takes_config
from hmc_fast.cli.film_limit import limits_films
from hmc_fast.cli.output import console, print_json, print_table, progress_bar


@takes_config
@limits_films
def localise(
    checkpoints: Annotated[
        list[Path], typer.Argument(help="Checkpoints, such as STUDY/MODEL/fold*/model.safetensors.")
    ],
    data: options.Data,
    out: options.Out,
    method: Annotated[
        list[str] | None,
        choice("method", options.METHODS, help="Map to score; repeatable; all by default."),
    ] = None,
    layer: Annotated[
        str | None, typer.Option(help="Module whose feature map is used; the last by default.")
    ] = None,
    steps: Annotated[int, typer.Option(help="Steps of the deletion and insertion curves.")] = 16,
    sanity_films: Annotated[
        int, typer.Option(help="Films a checkpoint for the check with shuffled weights.")
    ] = 4,
    score_channels: Annotated[
        int, typer.Option(help="Score-CAM on so many channels of largest variance; 0 for all.")
    ] = 64,
    films: Annotated[
        int | None, typer.Option(help="At most so many annotated films a checkpoint.")
    ] = None,
    backend: options.Backend = "auto",
    allow_missing: options.AllowMissing = False,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the shuffled weights.")] = 0,
    as_json: options.AsJson = False,
    *,
    effective: Effective,
) -> None:
    """Maps against annotated lesions, deletion and insertion curves, and a sanity check.

    Scores each checkpoint on the annotated films of patients that it has not seen, and writes
    OUT/MODEL/localisation.json for each model among the checkpoints.

    Example: [bold]hmc-fast localise study/*/fold*/model.safetensors --data mias --out study[/bold]
    """
    from hmc_fast.checkpoint import load_model
    from hmc_fast.data import read_films
    from hmc_fast.devices import default_device
    from hmc_fast.evaluation.localisation import LOCALISATION_FILE
    from hmc_fast.explain.localisation import (
        LocalisationSettings,
        measure_localisation,
        write_localisation,
    )
    from hmc_fast.files import make_folder

    settings = LocalisationSettings(
        methods=tuple(method or ["all"]),
        steps=steps,
        sanity_films=sanity_films,
        score_channels=score_channels or None,
        layer=layer,
        max_films=films,
        seed=seed,
    )
    labelled_films = read_films(data, allow_missing=allow_missing)
    by_model: dict[str, list[Path]] = defaultdict(list)
    for path in checkpoints:
        by_model[load_model(path).metadata.model.name].append(path)
    for name in by_model:  # not in the folder: that of a study holds the study's options
        effective.keep_beside(out / name / LOCALISATION_FILE)
    results = []
    with progress_bar("films") as report:
        for name, paths in by_model.items():
            result = measure_localisation(
                paths,
                labelled_films,
                settings,
                backend=backend,
                device=default_device(),
                on_progress=report,
            )
            write_localisation(make_folder(out / name), result)
            results.append(result)
    if as_json:
        print_json(results)
        return
    for result in results:
        print_table(*_table(result), title=_title(result))
    console.print(
        "Deletion: smaller is better. Insertion: larger is better. Sanity: the rank correlation "
        "with the map of shuffled weights, near 0 for a map that depends on what was learned.",
        style="dim",
    )


def _title(result: dict[str, Any]) -> str:
    severities = ", ".join(f"{n} {severity}" for severity, n in result["films_by_severity"].items())
    return (
        f"{result['model']}, task {result['task']}: {result['films']} annotated films "
        f"({severities}) of {result['patients']} patients unseen in training"
    )


def _table(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    header = ["map", "pointing game", "energy in the lesion", "deletion", "insertion", "sanity"]
    rows = [
        [
            name,
            _interval(values["pointing_game"]),
            _interval(values["energy_in_lesion"]),
            _interval(values["deletion_auc"]),
            _interval(values["insertion_auc"]),
            _value(values["sanity"]["rank_correlation"]),
        ]
        for name, values in result["methods"].items()
    ]
    rows += [
        [name, _interval(values["pointing_game"]), _interval(values["energy_in_lesion"])]
        + ["–"] * 3
        for name, values in result["baselines"].items()
    ]
    return header, rows


def _interval(interval: dict[str, float | None]) -> str:
    if interval["value"] is None:
        return "undefined"
    return f"{interval['value']:.3f} [{interval['low']:.3f}, {interval['high']:.3f}]"


def _value(interval: dict[str, float | None]) -> str:
    return "undefined" if interval["value"] is None else f"{interval['value']:+.2f}"
