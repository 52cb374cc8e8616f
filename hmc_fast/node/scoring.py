"""From a film in the spool to its results, by the same path as ``predict``."""

from dataclasses import dataclass
from pathlib import Path

import torch
from pydicom.dataset import Dataset

from hmc_fast.checkpoint import LoadedModel, load_model
from hmc_fast.data import film_image
from hmc_fast.dicom_results.reading import Reading
from hmc_fast.dicom_results.writing import results_of
from hmc_fast.errors import UserError
from hmc_fast.explain.film import usual_methods
from hmc_fast.explain.methods import activation_map
from hmc_fast.inference import prepare
from hmc_fast.prediction.decision import Decision, decide
from hmc_fast.prediction.engine import LocalEngine
from hmc_fast.prediction.job import PredictionJob
from hmc_fast.prediction.manifest import file_digest
from hmc_fast.prediction.scores import Scorer
from hmc_fast.prediction.sources import Source

LEVEL = "film"


@dataclass(frozen=True)
class FilmReader:
    """Scores films one by one; a film's mate may never come, so breasts are not compared."""

    loaded: LoadedModel
    checkpoint: str
    scorer: Scorer
    decision: Decision

    @classmethod
    def of(cls, checkpoint: Path, *, backend: str, device: torch.device) -> "FilmReader":
        """Raises as :func:`hmc_fast.checkpoint.load_model`."""
        loaded = load_model(checkpoint, backend=backend, device=device)
        metadata = loaded.metadata
        scorer = Scorer(
            [prepare(loaded.model)], metadata.preprocessing, compare=False, batch_size=1
        )
        decision = decide([metadata], None, compare=False)
        return cls(loaded, file_digest(checkpoint), scorer, decision)

    def read(self, path: Path) -> dict[str, Dataset]:
        """The film's results; see :func:`hmc_fast.dicom_results.writing.results_of`.

        The map speaks for the last class, whatever is decided.

        Raises :class:`UserError`, without the path, for a film that cannot be scored.
        """
        model, metadata = self.loaded
        job = PredictionJob(
            [Source(path)], LocalEngine(self.scorer), {}, metadata.class_names, LEVEL
        )
        (result,) = job.run(lambda description, done, total: None)
        if result.error:
            raise UserError(result.error)
        reading = Reading(
            model=metadata.model.name,
            checkpoint=self.checkpoint,
            task=metadata.task,
            class_names=metadata.class_names,
            probabilities=result.probabilities,
            decision=self.decision,
            rule=result.rule,
        )
        try:
            film = film_image(path, metadata.preprocessing)
            device = next(model.parameters()).device
            image = metadata.preprocessing.normalise(film.image).to(device)
            positive = len(metadata.class_names) - 1
            maps = [activation_map(model, image, m, positive) for m in usual_methods(model)]
            return results_of(path, film, reading, maps)
        except UserError as error:
            raise UserError(str(error).removeprefix(f"{path}: ")) from None
