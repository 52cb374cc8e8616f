"""Options of the benchmark: peers, precisions, where records go."""

from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import typer

from hmc_fast.bench.peers import PEERS, peer_names

_PEER_LINES = {p.name: f"{p.name} ({p.help})" for p in PEERS}


def _peers_help(names: Sequence[str]) -> str:
    return f"One of {', '.join(_PEER_LINES[name] for name in names)}; repeatable."


OperatorPeers = Annotated[
    list[str] | None,
    typer.Option("--peer", "--backend", help=_peers_help(peer_names("operator", "block"))),
]
ModelPeers = Annotated[
    list[str] | None,
    typer.Option("--peer", "--implementation", help=_peers_help(peer_names("model"))),
]
Precisions = Annotated[
    list[str] | None,
    typer.Option("--precision", "--dtype", help="bf16, fp16 or fp32; repeatable."),
]
BenchOut = Annotated[
    Path | None,
    typer.Option("--out", help="Folder for record and reports; the main job resumes its folds."),
]
