"""All that any process needs to make the same scorer."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from hmc_fast.checkpoint import LoadedModel, load_ensemble
from hmc_fast.errors import UserError
from hmc_fast.inference import prepare
from hmc_fast.prediction.manifest import file_digest
from hmc_fast.prediction.scores import Scorer


@dataclass(frozen=True)
class Recipe:
    """Checkpoints and how they are used; can be hashed and pickled.

    ``digests`` are the SHA-256 of the checkpoints' files, ``max_pixels`` is the limit of
    :mod:`hmc_fast.data.limits`. The rest is as in :class:`hmc_fast.prediction.scores.Scorer`.
    """

    checkpoints: tuple[Path, ...]
    digests: tuple[str, ...]
    backend: str
    device: str
    precision: str
    compare: bool
    batch_size: int
    workers: int
    allow_raw: bool
    max_pixels: int

    def load(self) -> list[LoadedModel]:
        """The models, on their device.

        Raises :class:`UserError` as :func:`hmc_fast.checkpoint.load_ensemble`, or where a file is
        not the one that the recipe was made with.
        """
        members = load_ensemble(self.checkpoints, backend=self.backend, device=self.device)
        for path, digest in zip(self.checkpoints, self.digests, strict=True):
            if file_digest(path) != digest:
                raise UserError(f"{path}: is another checkpoint than where the command was started")
        return members

    def scorer(self, members: Sequence[LoadedModel]) -> Scorer:
        """A scorer by copies of the models, prepared to infer with."""
        return Scorer(
            [prepare(member.model, precision=self.precision) for member in members],
            members[0].metadata.preprocessing,
            self.compare,
            self.batch_size,
            self.workers,
            self.allow_raw,
        )
