"""``hmc-fast predict``: class probabilities of films, breasts or patients."""

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from hmc_fast.cli import options
from hmc_fast.cli.choices import choice
from hmc_fast.cli.config_file import Effective, takes_config
from hmc_fast.cli.film_limit import limits_films
from hmc_fast.cli.output import (
    console,
    errors,
    print_json,
    print_table,
    printable,
    progress_bar,
)
from hmc_fast.errors import UserError

if TYPE_CHECKING:
    from hmc_fast.prediction.decision import Decision
    from hmc_fast.prediction.job import Failure, PredictionJob
    from hmc_fast.prediction.levels import Result

BULK_BATCH = 8
LOCAL = "local"
LEVELS = ("film", "breast", "patient")
NAMED_FAILURES = 20
"""So many films without a score are named on the terminal; the table names all."""
RECORD_FILE = "record.json"
NOTICE = "Research software: these are no diagnoses."


@takes_config
@limits_films
def predict(
    files: Annotated[
        list[Path],
        typer.Argument(
            help="Films (PGM, PNG, DICOM), folders of them, patterns such as 'in/**/*.dcm', a "
            "DICOMDIR, or a CSV table with the column path."
        ),
    ],
    checkpoint: options.Checkpoints,
    out: Annotated[
        Path | None, typer.Option(help="Table to write, .csv or .parquet; resumable.")
    ] = None,
    level: Annotated[str, choice("level", LEVELS, help="Whose results the rows are.")] = "film",
    threshold: Annotated[
        float | None,
        typer.Option(
            min=0,
            max=1,
            help="Probability from which on class 1 is predicted; by default the checkpoint's "
            "operating point, if it has one.",
        ),
    ] = None,
    chunk: Annotated[
        str | None,
        typer.Option(help="Score share N of M of --out, as N/M; the last one writes the table."),
    ] = None,
    engine: Annotated[
        str,
        typer.Option(
            metavar="local|ray[://ADDRESS]",
            help="What scores: this process, or Ray, which repeats what a worker or a node lost.",
        ),
    ] = "local",
    device: options.Device = "auto",
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=options.MOST_FILMS,
            help=f"Films a forward pass; {BULK_BATCH} with --out, else 1, which keeps a film's "
            "last bits free of the others.",
        ),
    ] = None,
    workers: Annotated[
        int, typer.Option(min=0, help="Processes that read films ahead, for a GPU.")
    ] = 0,
    backend: options.Backend = "auto",
    precision: options.Precision = "fp32",
    bilateral: Annotated[
        bool | None,
        typer.Option(
            "--bilateral/--own", help="Compare films with the other breast's, or none of them."
        ),
    ] = None,
    allow_raw: options.AllowRaw = False,
    as_json: options.AsJson = False,
    *,
    effective: Effective,
) -> None:
    """Class probabilities of one film or an archive. Research only, no diagnosis.

    A checkpoint that compares breasts takes a patient's films together: 2v - v_mate, where v is a
    film's own score and v_mate that of the other breast in the same view. DICOM says patient, side
    and view in its header, MIAS by the film's number; a film without its mate keeps v, and the rule
    that gave each result is said. Several checkpoints, such as the folds of a study, give the mean
    of their probabilities. A breast's result is the mean of its views', a patient's that of the
    breast with more evidence.

    A film that cannot be scored does not stop the others: it is named at the end, and the exit
    code is 1. The same command with --out goes on where a killed one stopped.

    Examples: [bold]hmc-fast predict left.dcm right.dcm --checkpoint model.safetensors[/bold];
    [bold]hmc-fast predict archive --checkpoint model.safetensors --out scores.csv[/bold]
    """
    from hmc_fast.checkpoint import load_ensemble
    from hmc_fast.data.limits import max_pixels
    from hmc_fast.devices import device_by_name
    from hmc_fast.inference import slower_precision
    from hmc_fast.prediction.decision import decide
    from hmc_fast.prediction.engine import Engine, LocalEngine
    from hmc_fast.prediction.job import PredictionJob
    from hmc_fast.prediction.manifest import file_digest
    from hmc_fast.prediction.ray_engine import RayEngine, check_engine
    from hmc_fast.prediction.recipe import Recipe
    from hmc_fast.prediction.sources import find_sources

    check_engine(engine, device)
    local = engine == LOCAL
    target = device_by_name(device if local else "cpu")
    sources = find_sources(files)
    tables = [path for path in files if path.is_file()]
    check_out(out, chunk, [*checkpoint, *tables, *(source.path for source in sources)])
    members = load_ensemble(checkpoint, backend=backend, device=target)
    metadata = members[0].metadata
    compare = metadata.bilateral if bilateral is None else bilateral
    if compare and len(metadata.class_names) != 2:
        raise UserError("--bilateral compares the scores of two classes; the checkpoint has more")
    decision = decide([member.metadata for member in members], threshold, compare=compare)
    recipe = Recipe(
        checkpoints=tuple(path.resolve() for path in checkpoint),
        digests=tuple(file_digest(path) for path in checkpoint),
        backend=backend,
        device=str(target) if local else device,
        precision=precision,
        compare=compare,
        batch_size=batch_size or (1 if out is None else BULK_BATCH),
        workers=workers,
        allow_raw=allow_raw,
        max_pixels=max_pixels(),
    )
    chosen: Engine = LocalEngine(recipe.scorer(members)) if local else RayEngine(recipe, engine)
    del members  # so that an ensemble is not held twice
    if local and (note := slower_precision(precision, target)):
        errors.print(note, style="yellow")
    scoring = {
        "checkpoints": list(recipe.digests),
        "preprocessing": metadata.preprocessing.to_json(),
        "precision": precision,
        "bilateral": compare,
        "allow_raw": allow_raw,
        "max_pixels": recipe.max_pixels,
    }
    job = PredictionJob(sources, chosen, scoring, metadata.class_names, level)
    record = {
        "model": metadata.model.to_json(),
        "checkpoints": len(checkpoint),
        "task": metadata.task,
        "preprocessing": metadata.preprocessing.to_json(),
        "precision": precision,
        "engine": engine,
        "level": level,
        "decision": decision.to_json(),
    }
    if out is None:
        print_results(job, decision, record, as_json)
    else:
        write_scores(job, decision, record, out, chunk, effective, as_json)


def check_out(out: Path | None, chunk: str | None, inputs: Sequence[Path]) -> None:
    """Raises :class:`UserError` for a table that cannot or must not be written."""
    from hmc_fast.files import refuse_overwrite
    from hmc_fast.prediction.job import parts_folder, share_of
    from hmc_fast.prediction.tables import check_table

    if chunk is not None:
        share_of(chunk)
        if out is None:
            raise UserError("--chunk needs --out, where the shares come together")
    if out is None:
        return
    check_table(out)
    if out.exists():
        refuse_overwrite(out, *inputs)
        if not parts_folder(out).is_dir():
            raise UserError(f"--out {out}: exists, and no prediction that can be continued made it")


def print_results(
    job: "PredictionJob", decision: "Decision", record: dict[str, Any], as_json: bool
) -> None:
    """Score and print; exit code 1 where a film has no score."""
    from hmc_fast.prediction.job import Failure
    from hmc_fast.prediction.levels import predicted_class

    with progress_bar("films") as report:
        everything = job.run(report)
    failures = [Failure(result.file, result.error) for result in everything if result.error]
    films = [
        {
            **_subject(result, job.level),
            "probabilities": dict(zip(job.class_names, result.probabilities, strict=True)),
            "predicted": job.class_names[predicted_class(result.probabilities, decision.threshold)],
            "rule": result.rule,
        }
        for result in everything
        if not result.error
    ]
    if as_json:
        failed = [{"file": failure.file, "error": failure.error} for failure in failures]
        print_json({**record, "films": films, "failed": failed})
    elif films:
        subject = ["film"] if job.level == "film" else ["patient", "side", "view", "film"]
        probabilities = [f"p({name})" for name in job.class_names]
        print_table(
            [*subject, "predicted", *probabilities, "rule"],
            [
                [
                    *(film[{"film": "file"}.get(name, name)] for name in subject),
                    film["predicted"],
                    *(f"{p:.4f}" for p in film["probabilities"].values()),
                    film["rule"],
                ]
                for film in films
            ],
        )
        _say_decision(decision, job.class_names[-1])
    _refuse_failures(failures, len(job.sources), None)


def _subject(result: "Result", level: str) -> dict[str, Any]:
    """Whose result it is; a film is named by its file alone."""
    if level == "film":
        return {"file": result.file}
    return {
        "patient": result.patient,
        "side": result.side,
        "view": result.view,
        "file": result.file,
    }


def write_scores(
    job: "PredictionJob",
    decision: "Decision",
    record: dict[str, Any],
    out: Path,
    chunk: str | None,
    effective: Effective,
    as_json: bool,
) -> None:
    """Score into a table and say so; exit code 1 where a film has no score."""
    from hmc_fast.environment import environment
    from hmc_fast.files import write_json
    from hmc_fast.prediction.job import ALL, parts_folder, share_of

    share = ALL if chunk is None else share_of(chunk)
    effective.keep_beside(out, ours=True)
    with progress_bar("films") as report:
        outcome = job.run_to_table(out, decision.threshold, share, report)
    record |= {**outcome.to_json(), "environment": environment()}
    if not outcome.chunks_missing:
        write_json(parts_folder(out) / RECORD_FILE, record)
    if as_json:
        print_json(record)
    elif outcome.chunks_missing:
        _say(
            f"share {chunk} is scored; {outcome.chunks_missing} of {outcome.chunks} chunks of "
            f"other shares are missing, {out} is written with the last"
        )
    else:
        speed = outcome.films_per_second
        pace = f", {speed:.1f} films a second" if speed else ", all scored before"
        _say(f"{outcome.films} films{pace}\ntable {out}")
        _say(f"parts {parts_folder(out)}: the same command continues from them")
        _say_decision(decision, job.class_names[-1])
    _refuse_failures(outcome.failures, outcome.films, None if outcome.chunks_missing else out)


def _say_decision(decision: "Decision", positive: str) -> None:
    rule = decision.origin
    if decision.threshold is not None:
        rule = f"{positive} from {decision.threshold:.4f} on ({rule})"
    _say(f"decided by {rule}\n{NOTICE}", style="dim")


def _say(text: str, style: str = "") -> None:
    console.print(printable(text), style=style, markup=False, highlight=False, soft_wrap=True)


def _refuse_failures(failures: Sequence["Failure"], films: int, table: Path | None) -> None:
    """Name the films without a score and end with exit code 1, if there are any."""
    if not failures:
        return
    if len(failures) == films == 1:
        raise UserError(f"{failures[0].file}: {failures[0].error}")
    for failure in failures[:NAMED_FAILURES]:
        line = printable(f"{failure.file}: {failure.error}")
        errors.print(line, markup=False, highlight=False, soft_wrap=True)
    reasons = f"; {table} says why of each" if table is not None else ""
    raise UserError(f"{len(failures)} of {films} films have no score{reasons}")
