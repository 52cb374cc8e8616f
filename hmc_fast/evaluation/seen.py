"""Which films a model must not be evaluated on: those of patients it was trained on."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from hmc_fast.checkpoint import CheckpointMetadata
from hmc_fast.data import Film, FilmCache


@dataclass(frozen=True)
class SeenFilms:
    """Film by film, whether its pixels, or another film of its patient, were trained on."""

    films: tuple[bool, ...]
    patients: tuple[bool, ...]


def seen_films(
    models: Sequence[CheckpointMetadata],
    films: Sequence[Film],
    cache: FilmCache,
    on_film: Callable[[int], object] = lambda count: None,
) -> SeenFilms:
    """What any of ``models`` has seen of ``films``.

    Films are known by their pixels, patients by the keys in the checkpoint, and by their films.

    Raises :class:`UserError` where a film cannot be read.
    """
    digests = {digest for model in models for digest in model.training_films.values()}
    seen = []
    for film in films:
        seen.append(cache.digest(film.path) in digests)
        on_film(1)
    patients = {film.patient_id for film, known in zip(films, seen, strict=True) if known}
    for model in models:
        trained_on = model.training_patients.hold(films)
        patients |= {f.patient_id for f, known in zip(films, trained_on, strict=True) if known}
    return SeenFilms(tuple(seen), tuple(film.patient_id in patients for film in films))
