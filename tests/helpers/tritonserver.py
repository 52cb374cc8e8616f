"""What tests know of a Triton Inference Server that they started."""

from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Server:
    """A server that is ready: its addresses, its process, and the checkpoint that it serves."""

    http: str
    grpc: str
    process: int
    checkpoint: Path
    repository: Path
