"""A prediction from films to results: in memory, or as a table that survives a kill.

Beside the table ``scores.csv`` stands the folder ``scores.csv.parts`` with the frozen manifest and
a part file for each chunk. Whoever runs the same command again, on any machine that sees the
folder, goes on where it stopped: parts that exist are skipped. Only the making of the manifest is
locked; two processes that score one chunk write the same part.
"""

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hmc_fast.errors import UserError
from hmc_fast.prediction.engine import Engine
from hmc_fast.prediction.levels import Result, results
from hmc_fast.prediction.manifest import Chunk, Manifest, frozen_manifest, make_manifest
from hmc_fast.prediction.parts import part_path, read_part, write_part
from hmc_fast.prediction.scores import FilmScore
from hmc_fast.prediction.sources import Source
from hmc_fast.prediction.tables import write_table
from hmc_fast.progress import Progress

ALL = (1, 1)
"""The share of a process that does the whole job."""


@dataclass(frozen=True)
class Failure:
    """A film without a score."""

    file: str
    error: str


@dataclass(frozen=True)
class TableOutcome:
    """What a run did for a table.

    ``failures`` are films without a score, of the run's share until the table is written, then of
    all. ``seconds`` are those of scoring ``scored_now`` films.
    """

    films: int
    chunks: int
    chunks_missing: int
    scored_now: int
    seconds: float
    failures: tuple[Failure, ...]

    @property
    def films_per_second(self) -> float | None:
        return self.scored_now / self.seconds if self.scored_now else None

    def to_json(self) -> dict[str, Any]:
        return {
            "films": self.films,
            "failed": len(self.failures),
            "chunks": self.chunks,
            "chunks_missing": self.chunks_missing,
            "scored_now": self.scored_now,
            "seconds": self.seconds,
            "films_per_second": self.films_per_second,
        }


@dataclass(frozen=True)
class PredictionJob:
    """Films, who scores them, and at which level results are given.

    ``scoring`` is what the scores depend on besides the films, as JSON.
    """

    sources: Sequence[Source]
    engine: Engine
    scoring: dict[str, Any]
    class_names: tuple[str, ...]
    level: str

    def run(self, report: Progress) -> list[Result]:
        """All results, films in the order in which they were named."""
        total = 2 * len(self.sources)
        manifest = make_manifest(
            self.sources, self.scoring, lambda: report("looking at files", 1, total)
        )
        scores: dict[str, FilmScore] = {}
        for _, scored in self._scores(manifest.chunks, report, total):
            scores |= {score.entry.path: score for score in scored}
        return list(results([scores[entry.path] for entry in manifest.entries], self.level))

    def run_to_table(
        self, table: Path, threshold: float | None, share: tuple[int, int], report: Progress
    ) -> TableOutcome:
        """Score the share's chunks that have no part yet; write the table once all parts are there.

        Raises:
            UserError: the disk refuses, or what is there is damaged, or belongs to other films,
                checkpoints or settings.
        """
        folder = parts_folder(table)
        count = len(self.sources)
        manifest = frozen_manifest(
            folder, self.sources, self.scoring, lambda: report("looking at files", 1, count)
        )
        chunks = manifest.chunks[share[0] - 1 :: share[1]]
        open_chunks = _missing(folder, chunks)
        scored_now = sum(len(chunk.entries) for chunk in open_chunks)
        start = time.perf_counter()
        for chunk, scores in self._scores(open_chunks, report, scored_now):
            write_part(folder, chunk, scores, self.class_names)
        seconds = time.perf_counter() - start
        missing = len(_missing(folder, manifest.chunks))
        failures: list[Failure] = []
        if missing:
            for chunk in chunks:
                failures += _failures(read_part(folder, chunk, self.class_names))
        else:
            rows = self._merged(folder, manifest, failures)
            write_table(table, rows, self.class_names, threshold)
        return TableOutcome(
            count, len(manifest.chunks), missing, scored_now, seconds, tuple(failures)
        )

    def _scores(
        self, chunks: Sequence[Chunk], report: Progress, total: int
    ) -> Iterator[tuple[Chunk, list[FilmScore]]]:
        return self.engine.scores(chunks, lambda n: report("predicting", n, total))

    def _merged(
        self, folder: Path, manifest: Manifest, failures: list[Failure]
    ) -> Iterator[Result]:
        """All results in the manifest's order; films without a score go into ``failures`` too.

        Raises :class:`UserError` where a part is damaged or a film has two scores.
        """
        seen: set[tuple[str, str]] = set()
        for chunk in manifest.chunks:
            scores = read_part(folder, chunk, self.class_names)
            _refuse_doubles(scores, seen)
            failures += _failures(scores)
            yield from results(scores, self.level)


def parts_folder(table: Path) -> Path:
    """Where the manifest and the parts of a table are."""
    return table.with_name(f"{table.name}.parts")


def share_of(text: str) -> tuple[int, int]:
    """``"3/8"`` as share 3 of 8; raises :class:`UserError` for anything but 1/8 to 8/8."""
    number, _, count = text.partition("/")
    if number.isdecimal() and count.isdecimal() and 1 <= int(number) <= int(count):
        return int(number), int(count)
    raise UserError(f"--chunk {text}: needs N/M with N from 1 to M, such as 3/8")


def _missing(folder: Path, chunks: Sequence[Chunk]) -> list[Chunk]:
    return [chunk for chunk in chunks if not part_path(folder, chunk).exists()]


def _failures(scores: Sequence[FilmScore]) -> list[Failure]:
    return [Failure(score.entry.path, score.error) for score in scores if score.error]


def _refuse_doubles(scores: Sequence[FilmScore], seen: set[tuple[str, str]]) -> None:
    for score in scores:
        key = (score.entry.uid, score.entry.sha256)
        if score.error:
            continue
        if key in seen:
            raise UserError(f"{score.entry.path}: has two scores; start over with another --out")
        seen.add(key)
