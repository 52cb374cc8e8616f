"""Films to and from Triton Inference Server: what runs inside it, and its client."""

from hmc_fast.serving.client import FilmClient, FilmRefusedError

__all__ = ["FilmClient", "FilmRefusedError"]
