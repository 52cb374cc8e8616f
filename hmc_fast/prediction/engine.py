"""Where a prediction's chunks are scored: here, or by others."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from hmc_fast.prediction.manifest import Chunk
from hmc_fast.prediction.remote import RemoteScorer
from hmc_fast.prediction.scores import FilmScore, Scorer

OnFilms = Callable[[int], object]
"""Told the number of films that were scored since the last call."""


class Engine(Protocol):
    """Scores chunks, in whatever order they are ready."""

    def scores(
        self, chunks: Sequence[Chunk], on_films: OnFilms
    ) -> Iterator[tuple[Chunk, list[FilmScore]]]:
        """Each chunk once, with a score for every film, in the chunk's order.

        Raises :class:`hmc_fast.errors.UserError` where no more can be scored.
        """
        ...


@dataclass(frozen=True)
class LocalEngine:
    """One chunk after the other, by a scorer in this process."""

    scorer: Scorer | RemoteScorer

    def scores(
        self, chunks: Sequence[Chunk], on_films: OnFilms
    ) -> Iterator[tuple[Chunk, list[FilmScore]]]:
        """The chunks in their order."""
        for chunk in chunks:
            yield chunk, self.scorer.score(chunk.entries, on_films)
