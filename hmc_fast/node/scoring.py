"""From a film in the spool to its results, by the same path as ``predict``."""

from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple, cast

import torch
from pydicom.dataset import Dataset

from hmc_fast.checkpoint import CheckpointMetadata, load_model
from hmc_fast.data import film_image
from hmc_fast.data.pixels import pixel_digest
from hmc_fast.dicom_results.reading import Reading
from hmc_fast.dicom_results.writing import results_of
from hmc_fast.errors import UserError
from hmc_fast.explain.film import usual_methods
from hmc_fast.explain.methods import activation_map
from hmc_fast.inference import prepare
from hmc_fast.models import FilmModel
from hmc_fast.prediction.decision import Decision, decide
from hmc_fast.prediction.manifest import Entry, file_digest
from hmc_fast.prediction.scores import Scorer


class FilmResults(NamedTuple):
    """``results`` as of :func:`hmc_fast.dicom_results.writing.results_of`.

    ``picture`` is the digest of the film's pixels, see :func:`hmc_fast.data.pixels.picture_of`.
    """

    results: dict[str, Dataset]
    picture: str


@dataclass(frozen=True)
class FilmReader:
    """Scores films one by one; a film's mate may never come, so breasts are not compared.

    ``model`` draws the maps; it is the one that ``scorer`` scores by, so that one is held.
    """

    model: FilmModel
    metadata: CheckpointMetadata
    checkpoint: str
    scorer: Scorer
    decision: Decision

    @classmethod
    def of(cls, checkpoint: Path, *, backend: str, device: torch.device) -> "FilmReader":
        """Raises as :func:`hmc_fast.checkpoint.load_model`."""
        model, metadata = load_model(checkpoint, backend=backend, device=device)
        prepared = prepare(model)
        scorer = Scorer([prepared], metadata.preprocessing, compare=False)
        decision = decide([metadata], None, compare=False)
        return cls(
            cast(FilmModel, prepared.model), metadata, file_digest(checkpoint), scorer, decision
        )

    def read(self, path: Path) -> FilmResults:
        """What there is to say of a film, which is decoded once.

        The map speaks for the last class, whatever is decided.

        Raises :class:`UserError`, without the path, for a film that cannot be scored.
        """
        try:
            return self._read(path)
        except UserError as error:
            raise UserError(str(error).removeprefix(f"{path}: ")) from None

    def _read(self, path: Path) -> FilmResults:
        model, metadata = self.model, self.metadata
        film = film_image(path, metadata.preprocessing)
        image = metadata.preprocessing.normalise(film.image)
        entry = Entry(str(path), uid="", sha256="", patient="", side="", view="")
        (score,) = self.scorer.score_images([entry], image[None])
        if score.error:
            raise UserError(score.error)
        reading = Reading(
            model=metadata.model.name,
            checkpoint=self.checkpoint,
            task=metadata.task,
            class_names=metadata.class_names,
            probabilities=score.probabilities,
            decision=self.decision,
            rule=score.rule,
        )
        image = image.to(next(model.parameters()).device)
        positive = len(metadata.class_names) - 1
        maps = [activation_map(model, image, m, positive) for m in usual_methods(model)]
        return FilmResults(results_of(path, film, reading, maps), pixel_digest(film.pixels))
