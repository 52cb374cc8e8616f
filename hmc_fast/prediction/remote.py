"""Scores of films by a server, which reads them and infers."""

import hashlib
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from hmc_fast.errors import UserError
from hmc_fast.evaluation.bilateral import OWN_RULE
from hmc_fast.prediction.manifest import Entry
from hmc_fast.prediction.scores import FilmScore
from hmc_fast.serving import FilmClient, FilmRefusedError
from hmc_fast.serving.service import check_bytes


@dataclass(frozen=True)
class RemoteScorer:
    """Scores films by a film model of Triton Inference Server, each film on its own.

    Args:
        connect: makes a client; called once for each connection.
        connections: films that are under way at once; the server batches them.
    """

    connect: Callable[[], FilmClient]
    connections: int = 4

    def score(
        self, entries: Sequence[Entry], on_films: Callable[[int], object] = lambda count: None
    ) -> list[FilmScore]:
        """A score for every entry, in order; a film that the server refuses has its reason.

        Raises :class:`UserError` where the server fails.
        """
        clients = _Clients(self.connect)
        pool = ThreadPoolExecutor(self.connections)
        try:
            scores = []
            for score in pool.map(lambda entry: _score(entry, clients), entries):
                scores.append(score)
                on_films(1)
            return scores
        finally:
            pool.shutdown(cancel_futures=True)
            clients.close()


class _Clients:
    """A client for each thread that asks."""

    def __init__(self, connect: Callable[[], FilmClient]) -> None:
        self._connect = connect
        self._local = threading.local()
        self._all: list[FilmClient] = []

    def mine(self) -> FilmClient:
        if not hasattr(self._local, "client"):
            self._local.client = self._connect()
            self._all.append(self._local.client)
        client: FilmClient = self._local.client
        return client

    def close(self) -> None:
        for client in self._all:
            client.close()


def _score(entry: Entry, clients: _Clients) -> FilmScore:
    if entry.problem:
        return FilmScore(entry, (), "", entry.problem)
    path = Path(entry.path)
    try:
        check_bytes(path.stat().st_size)
        content = path.read_bytes()
    except OSError as error:
        return FilmScore(entry, (), "", f"cannot be read ({error.strerror})")
    except UserError as error:
        return FilmScore(entry, (), "", str(error))
    if hashlib.sha256(content).hexdigest() != entry.sha256:
        return FilmScore(entry, (), "", "changed after the list of films was made")
    try:
        return FilmScore(entry, clients.mine().probabilities(content), OWN_RULE)
    except FilmRefusedError as error:
        return FilmScore(entry, (), "", str(error))
