"""Scores of films: read, put through the models in batches, compared with the other breast."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.special import softmax
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from hmc_fast.data import Preprocessing, film_image
from hmc_fast.errors import UserError
from hmc_fast.evaluation.bilateral import OWN_RULE, compare_logits
from hmc_fast.evaluation.predict import film_logits
from hmc_fast.inference import PreparedModel
from hmc_fast.prediction.manifest import Entry, file_digest

REASON_LENGTH = 300


class FilmScore(NamedTuple):
    """What became of one film: probabilities of the classes and their rule, or an error."""

    entry: Entry
    probabilities: tuple[float, ...]
    rule: str
    error: str = ""


class _Read(NamedTuple):
    """An image ``[3, H, W]``, or why there is none."""

    image: Tensor | None
    error: str


@dataclass(frozen=True)
class Scorer:
    """Scores films by one model, or by the mean probabilities of several.

    Args:
        models: of one task and one preprocessing, on one device.
        preprocessing: from a film to an image.
        compare: compare a patient's breasts, see :mod:`hmc_fast.evaluation.bilateral`; for two
            classes.
        batch_size: films a forward pass.
        workers: processes that read films ahead; 0 reads them in this one.
        allow_raw: also score DICOM images that are for processing.
    """

    models: Sequence[PreparedModel]
    preprocessing: Preprocessing
    compare: bool
    batch_size: int = 8
    workers: int = 0
    allow_raw: bool = False

    def score(
        self, entries: Sequence[Entry], on_films: Callable[[int], object] = lambda count: None
    ) -> list[FilmScore]:
        """A score for every entry, in order; what is wrong with a film is its score's error.

        Films are batched in order, so that the same entries give the same bits on one machine.
        ``on_films`` is told the number of films of each finished batch.
        """
        errors = {index: entry.problem for index, entry in enumerate(entries) if entry.problem}
        logits: dict[int, NDArray[np.float32]] = {}
        on_films(len(errors))
        to_read = [i for i in range(len(entries)) if i not in errors]
        with _death_of_a_reader_in_one_line():
            for batch in self._batches(to_read, entries):
                errors |= {index: read.error for index, read in batch.items() if read.image is None}
                images = {i: read.image for i, read in batch.items() if read.image is not None}
                if images:
                    rows = self._logits(torch.stack(list(images.values())))
                    logits |= dict(zip(images, rows.swapaxes(0, 1), strict=True))
                on_films(len(batch))
        return self._finished(entries, logits, errors)

    def score_images(self, entries: Sequence[Entry], images: Tensor) -> list[FilmScore]:
        """Scores of films that were read before, from normalised images ``[B, 3, H, W]``."""
        return self._finished(entries, dict(enumerate(self._logits(images).swapaxes(0, 1))), {})

    def _batches(
        self, chosen: Sequence[int], entries: Sequence[Entry]
    ) -> Iterator[dict[int, _Read]]:
        films = _Films([entries[index] for index in chosen], self.preprocessing, self.allow_raw)
        loader: DataLoader[_Read] = DataLoader(
            films, self.batch_size, num_workers=self.workers, collate_fn=list
        )
        start = 0
        for reads in loader:
            yield dict(zip(chosen[start : start + len(reads)], reads, strict=True))
            start += len(reads)

    def _logits(self, images: Tensor) -> NDArray[np.float32]:
        """Logits ``[models, B, classes]`` of images ``[B, 3, H, W]``."""
        device = next(self.models[0].parameters()).device
        with torch.inference_mode():
            images = images.to(device)
            logits = torch.stack([film_logits(m, images, self.preprocessing) for m in self.models])
        values: NDArray[np.float32] = logits.cpu().numpy()
        return values

    def _finished(
        self,
        entries: Sequence[Entry],
        logits: dict[int, NDArray[np.float32]],
        errors: dict[int, str],
    ) -> list[FilmScore]:
        """A score for every entry, from its logits ``[models, classes]`` or its error."""
        finite = {index: row for index, row in logits.items() if np.isfinite(row).all()}
        overflow = "the output is not finite; use --precision fp32, or train again"
        errors = errors | {index: overflow for index in logits if index not in finite}
        scores = {index: FilmScore(entries[index], (), "", e) for index, e in errors.items()}
        if finite:
            order = sorted(finite)
            films = [entries[index] for index in order]
            scores |= dict(zip(order, self._scores(np.stack([finite[i] for i in order], 1), films),
                               strict=True))  # fmt: skip
        return [scores[index] for index in range(len(entries))]

    def _scores(self, logits: NDArray[np.float32], entries: Sequence[Entry]) -> list[FilmScore]:
        """Mean probabilities of logits ``[models, films, classes]``, and the films' rules."""
        films = [entry.film for entry in entries]
        rules: Sequence[str] = [OWN_RULE] * len(films)
        members = []
        for member in logits:
            if self.compare:
                compared, rules = compare_logits(member, films)
            members.append(softmax(compared if self.compare else member.astype(np.float64), axis=1))
        return [
            FilmScore(entry, tuple(row), rule)
            for entry, row, rule in zip(
                entries, np.mean(members, axis=0).tolist(), rules, strict=True
            )
        ]


@contextmanager
def _death_of_a_reader_in_one_line() -> Iterator[None]:
    """PyTorch tells of it by a signal, so it may be raised in the middle of a model."""
    try:
        yield
    except RuntimeError as error:
        if "DataLoader worker" not in str(error):
            raise
        raise UserError(
            "a process that reads films died, perhaps for want of memory; run the same command "
            "again, with fewer --workers"
        ) from None


class _Films(Dataset[_Read]):
    """The films' images, each read where it is asked for."""

    def __init__(
        self, entries: Sequence[Entry], preprocessing: Preprocessing, allow_raw: bool
    ) -> None:
        self.entries = entries
        self.preprocessing = preprocessing
        self.allow_raw = allow_raw

    def __len__(self) -> int:
        return len(self.entries)

    def __getitem__(self, index: int) -> _Read:
        entry = self.entries[index]
        path = Path(entry.path)
        try:
            if file_digest(path) != entry.sha256:
                return _Read(None, "changed after the list of films was made")
            image = film_image(path, self.preprocessing, allow_raw=self.allow_raw).image
            return _Read(self.preprocessing.normalise(image), "")
        except UserError as error:
            return _Read(None, _reason(str(error), path))
        except Exception as error:  # one film must not stop an archive, whatever is wrong with it
            return _Read(None, _reason(f"{type(error).__name__}: {error}", path))


def _reason(message: str, path: Path) -> str:
    """One line without the path, which stands beside it."""
    prefix = str(UserError(f"{path}: "))  # as the error spells the path
    return " ".join(message.removeprefix(prefix).split())[:REASON_LENGTH]
