"""``hmc-fast serve``: processes that stay and answer."""

from pathlib import Path
from typing import Annotated

import typer

from hmc_fast.cli import options
from hmc_fast.cli.config_file import Effective, beside, takes_config
from hmc_fast.cli.film_limit import limits_films
from hmc_fast.cli.output import errors

group = typer.Typer(no_args_is_help=True, rich_markup_mode="rich")


@group.callback()
def serve() -> None:
    """Processes that stay and answer until Ctrl-C. Research software, not a medical device."""


@group.command()
@takes_config
@limits_films
def dicom(
    checkpoint: options.Checkpoint,
    send_to: Annotated[str, typer.Option(help="Where results go, as AE@host:port.")],
    allow: Annotated[
        list[str], typer.Option(help="AE title that may store films; may be repeated.")
    ],
    ae: Annotated[str, typer.Option(help="AE title of this node.")] = "HMCFAST",
    port: Annotated[
        int, typer.Option(min=0, max=65535, help="TCP port; 0 for any that is free.")
    ] = 11112,
    host: Annotated[
        str, typer.Option(help="Address to listen on; others than loopback are reached by others.")
    ] = "127.0.0.1",
    queue: Annotated[
        Path, typer.Option(help="Folder of films and results that wait; it survives a kill.")
    ] = Path("hmc-fast-queue"),
    queue_films: Annotated[
        int, typer.Option(min=1, help="Films that may wait; more are refused until later.")
    ] = 500,
    max_mib: Annotated[
        int, typer.Option(min=1, max=256, help="Largest film that is taken, in MiB.")
    ] = 128,
    tls_cert: Annotated[
        Path | None, typer.Option(help="Certificate of this node, PEM; turns TLS on.")
    ] = None,
    tls_key: Annotated[Path | None, typer.Option(help="Its private key, PEM.")] = None,
    tls_ca: Annotated[
        Path | None, typer.Option(help="Authority that signs the peers' certificates, PEM.")
    ] = None,
    device: options.Device = "auto",
    backend: options.Backend = "auto",
    *,
    effective: Effective,
) -> None:
    """A DICOM node: films in by C-STORE, a report and an overlay back. Research only.

    Ctrl-C ends it once the film at hand is scored; what waits is there at the next start.

    Example: [bold]hmc-fast serve dicom --checkpoint model.safetensors --allow ARCHIVE
    --send-to ARCHIVE@127.0.0.1:4242[/bold]
    """
    from hmc_fast.devices import device_by_name
    from hmc_fast.dicom_results.source import check_libraries

    check_libraries()
    from hmc_fast.node.log import start_logging
    from hmc_fast.node.node import Node
    from hmc_fast.node.scoring import FilmReader
    from hmc_fast.node.settings import NodeSettings, ae_title, peer_of, tls_of

    settings = NodeSettings(
        ae=ae_title(ae, "--ae"),
        host=host,
        port=port,
        allowed=tuple(ae_title(title, "--allow") for title in allow),
        peer=peer_of(send_to),
        queue=queue,
        capacity=queue_films,
        object_bytes=max_mib * 2**20,
        tls=tls_of(tls_cert, tls_key, tls_ca),
    )
    reader = FilmReader.of(checkpoint, backend=backend, device=device_by_name(device))
    start_logging()
    if settings.exposed:
        errors.print(
            f"--host {host}: films and results cross the network in the clear; --tls-cert, "
            "--tls-key and --tls-ca encrypt them",
            style="yellow",
        )

    def on_ready(bound: int) -> None:
        effective.write(beside(queue))
        errors.print(
            f"{settings.ae} listens on {host}:{bound}; research software, no diagnoses",
            markup=False,
            highlight=False,
        )

    Node(settings, reader).run(on_ready)
