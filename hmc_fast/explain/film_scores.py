"""The localisation scores of one film's maps."""

import copy
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hmc_fast.checkpoint import LoadedModel
from hmc_fast.data import TASKS, Film, film_image, read_pixels
from hmc_fast.errors import UserError
from hmc_fast.explain.film import lesion_in
from hmc_fast.explain.methods import SCALE, ScoreOptions, activation_map
from hmc_fast.explain.scale import scale_map
from hmc_fast.explain.scores import (
    area_under,
    deletion_images,
    energy_in_lesion,
    insertion_images,
    pointing_game,
    rank_correlation,
)
from hmc_fast.inference import folded
from hmc_fast.models import FilmModel

UNIFORM = "uniform"
BRIGHTNESS = "brightness"
BASELINES = (UNIFORM, BRIGHTNESS)
CURVE_PIXELS = 8 * 224**2
"""The curves' films go through the model in batches of this many pixels, at least one film."""


@dataclass(frozen=True)
class FilmScore:
    """One method on one film; None where a score does not apply."""

    film: str
    patient: str
    severity: str
    method: str
    layer: str | None
    pointing_game: float
    energy_in_lesion: float
    flat: bool = False
    deletion_auc: float | None = None
    insertion_auc: float | None = None
    deletion: list[float] | None = None
    insertion: list[float] | None = None
    sanity_checked: bool = False
    sanity_rank_correlation: float | None = None


class FilmScorer:
    """Scores the maps of one checkpoint.

    A map speaks for the film's own class, or for class 1 where that is class 0 (normal, or the
    rest): in a two-class task always for the positive class.
    """

    def __init__(self, loaded: LoadedModel, seed: int) -> None:
        self.model, self.metadata = loaded
        self.folded = folded(self.model)
        self.device = next(self.model.parameters()).device
        self.shuffled = with_shuffled_weights(self.model, seed)

    def sees_lesion(self, film: Film) -> bool:
        """Whether an annotated circle lies in what the model sees of the film."""
        return lesion_in(self.metadata.preprocessing, read_pixels(film.path), film) is not None

    def baselines(self, film: Film) -> list[FilmScore]:
        """The two maps that need no model, for a film whose lesion the model sees."""
        pixels, placed, _ = film_image(film.path, self.metadata.preprocessing)
        lesion = self._lesion(film, pixels)
        brightness = placed[0].numpy()
        maps = {UNIFORM: np.ones_like(brightness), BRIGHTNESS: brightness}
        return [
            FilmScore(
                film.film_id,
                film.patient_id,
                film.severity,
                name,
                None,
                pointing_game(maps[name], lesion),
                energy_in_lesion(maps[name], lesion),
            )
            for name in BASELINES
        ]

    def score(
        self,
        film: Film,
        method: str,
        *,
        layer: str | None,
        steps: int,
        channels: int | None,
        sanity: bool,
    ) -> FilmScore:
        """All scores of one method on a film whose lesion the model sees.

        Raises :class:`UserError` where the model's output is not finite.
        """
        pixels, placed, _ = film_image(film.path, self.metadata.preprocessing)
        lesion = self._lesion(film, pixels)
        image = self.metadata.preprocessing.normalise(placed).to(self.device)
        class_index = max(1, TASKS[self.metadata.task].classes[film.severity])
        options = ScoreOptions(channels=channels)
        values, used_layer = _map(self.model, image, method, class_index, layer, options)
        black = self.metadata.preprocessing.normalise(torch.zeros(1, 1, 1)).to(self.device)
        deletion = self._curve(deletion_images(image, values, black, steps), class_index)
        insertion = self._curve(insertion_images(image, values, steps), class_index)
        correlation = None
        if sanity:
            other, _ = _map(self.shuffled, image, method, class_index, layer, options)
            correlation = rank_correlation(values, other)
        return FilmScore(
            film.film_id,
            film.patient_id,
            film.severity,
            method,
            used_layer,
            pointing_game(values, lesion),
            energy_in_lesion(values, lesion),
            flat=bool(values.max() == values.min()),
            deletion_auc=area_under(deletion),
            insertion_auc=area_under(insertion),
            deletion=deletion.tolist(),
            insertion=insertion.tolist(),
            sanity_checked=sanity,
            sanity_rank_correlation=correlation,
        )

    def _lesion(self, film: Film, pixels: NDArray[np.float32]) -> NDArray[np.bool_]:
        lesion = lesion_in(self.metadata.preprocessing, pixels, film)
        if lesion is None:
            raise ValueError(f"{film.film_id}: the model sees no annotated lesion")
        return lesion

    def _curve(self, images: Tensor, class_index: int) -> NDArray[np.float64]:
        batch = max(1, CURVE_PIXELS // (images.shape[-2] * images.shape[-1]))
        with torch.no_grad():
            logits = torch.cat([self.folded(part).double() for part in torch.split(images, batch)])
        if not logits.isfinite().all():
            raise UserError("the model's output on a changed film is not finite; train it again")
        probabilities: NDArray[np.float64] = logits.softmax(1)[:, class_index].cpu().numpy()
        return probabilities


def with_shuffled_weights(model: FilmModel, seed: int) -> FilmModel:
    """A copy in which the entries of every parameter are shuffled: same values, nothing learned.

    Buffers, such as the running statistics of batch normalisation, stay.
    """
    shuffled: FilmModel = copy.deepcopy(model)
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for parameter in shuffled.parameters():
            order = torch.randperm(parameter.numel(), generator=generator).to(parameter.device)
            parameter.copy_(parameter.flatten()[order].view_as(parameter))
    shuffled.eval()
    return shuffled


def _map(
    model: FilmModel,
    image: Tensor,
    method: str,
    class_index: int,
    layer: str | None,
    options: ScoreOptions,
) -> tuple[NDArray[np.float32], str | None]:
    if method == SCALE:
        return scale_map(model, image).fine, None
    activation = activation_map(model, image, method, class_index, layer=layer, score=options)
    return activation.values, activation.layer
