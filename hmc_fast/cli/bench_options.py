"""Options of the benchmark: peers, precisions, where records go."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import typer

from hmc_fast.bench.peers import PEERS, peer_names
from hmc_fast.cli.choices import choice
from hmc_fast.cli.options import PRECISIONS

_PEER_LINES = {p.name: f"{p.name} ({p.help})" for p in PEERS}


def _peers(names: Sequence[str], alias: str) -> Any:
    lines = ", ".join(_PEER_LINES[name] for name in names)
    return choice(
        "peer", names, "--peer", alias, help=f"One of {lines}; repeatable.", metavar="PEER"
    )


OperatorPeers = Annotated[
    list[str] | None,
    _peers(peer_names("operator", "block"), "--backend"),
]
ModelPeers = Annotated[
    list[str] | None,
    _peers(peer_names("model"), "--implementation"),
]
Precisions = Annotated[
    list[str] | None,
    choice("precision", PRECISIONS, "--precision", "--dtype", help="Of the products; repeatable."),
]
BenchOut = Annotated[
    Path | None,
    typer.Option("--out", help="Folder for record and reports; the main job resumes its folds."),
]
