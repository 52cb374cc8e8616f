"""``hmc-fast score``: class probabilities of films by a Triton Inference Server."""

from pathlib import Path
from typing import Annotated

import typer

from hmc_fast.cli import options
from hmc_fast.cli.choices import choice
from hmc_fast.cli.config_file import Effective, takes_config
from hmc_fast.cli.predict import LEVELS, check_out, print_results, write_scores
from hmc_fast.errors import UserError


@takes_config
def score(
    files: Annotated[
        list[Path],
        typer.Argument(help="Films, folders, patterns, a DICOMDIR or a CSV table, as in predict."),
    ],
    server: Annotated[str, typer.Option(help="http://host:port or grpc://host:port.")],
    model: Annotated[str, typer.Option(help="Name of the server's film model.")] = "hmc_film",
    out: Annotated[
        Path | None, typer.Option(help="Table to write, .csv or .parquet; resumable.")
    ] = None,
    level: Annotated[str, choice("level", LEVELS, help="Whose results the rows are.")] = "film",
    threshold: Annotated[
        float | None,
        typer.Option(min=0, max=1, help="Probability from which on class 1 is predicted."),
    ] = None,
    connections: Annotated[int, typer.Option(min=1, help="Films that are under way at once.")] = 4,
    timeout: Annotated[
        float, typer.Option(min=0.1, help="Longest wait for an answer, in seconds.")
    ] = 120.0,
    as_json: options.AsJson = False,
    *,
    effective: Effective,
) -> None:
    """Class probabilities by the film model of a Triton Inference Server. Research only.

    The films' files are sent as they are, headers and all: send them to servers that may have them.
    No checkpoint is needed here; the server knows classes and preprocessing. Each film gets its
    own score, as by predict --own; tables are those of predict, and continue as they do.

    Example: [bold]hmc-fast score archive --server http://host:8000 --out scores.csv[/bold]
    """
    from hmc_fast.prediction.decision import Decision
    from hmc_fast.prediction.engine import LocalEngine
    from hmc_fast.prediction.job import PredictionJob
    from hmc_fast.prediction.levels import check_level
    from hmc_fast.prediction.remote import RemoteScorer
    from hmc_fast.prediction.sources import find_sources
    from hmc_fast.serving import FilmClient

    check_level(level)
    sources = find_sources(files)
    tables = [path for path in files if path.is_file()]
    check_out(out, None, [*tables, *(source.path for source in sources)])

    def connect() -> FilmClient:
        return FilmClient(server, model=model, timeout_s=timeout)

    with connect() as client:
        service = client.service
    if threshold is not None and len(service.class_names) != 2:
        raise UserError("--threshold is for two classes; the server's model has more")
    decision = Decision(threshold, "the likelier class" if threshold is None else "--threshold")
    preprocessing = service.preprocessing.to_json()
    scoring = {
        "server": server,
        "model": [model, service.model, service.version],
        "preprocessing": preprocessing,
        "allow_raw": service.allow_raw,
    }
    engine = LocalEngine(RemoteScorer(connect, connections))
    job = PredictionJob(sources, engine, scoring, service.class_names, level)
    record = {
        "server": server,
        "model": service.model,
        "version": service.version,
        "task": service.task,
        "preprocessing": preprocessing,
        "level": level,
        "decision": decision.to_json(),
    }
    if out is None:
        print_results(job, decision, record, as_json)
    else:
        write_scores(job, decision, record, out, None, effective, as_json)
