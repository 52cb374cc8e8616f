"""How good are the maps: against annotated lesions, and against the model itself.

Every method is scored on the annotated films of patients that the checkpoint was not trained on:

- *pointing game*: how often the map's maximum lies in the lesion (Zhang et al., ECCV 2016);
- *energy in the lesion*: the share of the map that lies there (Wang et al., CVPR-W 2020);
- *deletion and insertion*: the class's probability while the most salient pixels are taken away, or
  brought back to a blurred film; a small area under the first curve and a large one under the
  second say that the map names what the model used (Petsiuk et al., BMVC 2018);
- *sanity*: the rank correlation with the map of the same model with shuffled weights; a map that
  stays the same cannot depend on what was learned (Adebayo et al., NeurIPS 2018).

Beside them stand two maps that need no model: the same value everywhere (whose energy is the
lesion's share of the film) and the film's own brightness.

The results are described, and read, in :mod:`hmc_fast.evaluation.localisation`.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from hmc_fast.checkpoint import CheckpointMetadata, load_model
from hmc_fast.data import TASKS, Film, FilmCache, Preprocessing
from hmc_fast.environment import environment
from hmc_fast.errors import UserError
from hmc_fast.evaluation.bootstrap import mean_interval
from hmc_fast.evaluation.localisation import KIND, LOCALISATION_FILE, METRICS, SCHEMA
from hmc_fast.evaluation.seen import seen_films
from hmc_fast.explain.film import check_methods, why_no_map
from hmc_fast.explain.film_scores import BASELINES, FilmScore, FilmScorer
from hmc_fast.explain.methods import METHODS, ScoreOptions
from hmc_fast.files import write_json
from hmc_fast.progress import Progress, no_progress

UNCHANGED = 0.5
"""From this mean rank correlation on, a map is said not to depend on the learned weights."""


@dataclass(frozen=True)
class LocalisationSettings:
    """What is measured.

    Args:
        methods: of :data:`hmc_fast.explain.METHODS`; the scale map enters as the share of its
            finest scale, and is left out for models without one.
        steps: of the deletion and insertion curves.
        sanity_films: for how many films of a checkpoint the maps of shuffled weights are drawn.
        score_channels: Score-CAM on this many channels of largest variance; None for all.
        layer: None for each model's default.
        max_films: at most so many annotated films of a checkpoint, evenly spread; None for all.
        seed: of the shuffled weights.

    Raises:
        UserError: a value is out of range.
    """

    methods: tuple[str, ...] = METHODS
    steps: int = 16
    sanity_films: int = 4
    score_channels: int | None = 64
    layer: str | None = None
    max_films: int | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        object.__setattr__(self, "methods", check_methods(self.methods))
        ScoreOptions(channels=self.score_channels)
        for name, value, least in (
            ("steps", self.steps, 2),
            ("sanity films", self.sanity_films, 0),
            ("films", self.max_films, 1),
        ):
            if value is not None and value < least:
                raise UserError(f"{name}: {value} is too few, needs at least {least}")

    def to_json(self) -> dict[str, Any]:
        shares = [round(step / self.steps, 6) for step in range(self.steps + 1)]
        return {**asdict(self), "methods": list(self.methods), "shares": shares}


def measure_localisation(
    checkpoints: Sequence[Path],
    films: Sequence[Film],
    settings: LocalisationSettings,
    *,
    backend: str = "auto",
    device: str | torch.device = "cpu",
    on_progress: Progress = no_progress,
) -> dict[str, Any]:
    """Score the maps of one model; returns what ``localisation.json`` holds.

    Args:
        checkpoints: of one model and task, such as those of a study's folds; each is scored on the
            films of patients that it has not seen.
        films: the films; those without a lesion circle, or that the task is not posed on, are not
            used.
        settings: what is measured.
        backend: as in :func:`hmc_fast.create_model`.
        device: where the model runs.
        on_progress: is told of progress.

    Raises:
        UserError: checkpoints of several models or tasks, no annotated film of an unseen patient,
            or as :func:`hmc_fast.explain.explain_film`.
    """
    scores: list[FilmScore] = []
    caches: dict[Preprocessing, FilmCache] = {}
    first: CheckpointMetadata | None = None
    left_out: dict[str, str] = {}
    for number, path in enumerate(checkpoints, start=1):
        loaded = load_model(path, backend=backend, device=device)
        metadata = loaded.metadata
        first = first or metadata
        if (metadata.model.name, metadata.task) != (first.model.name, first.task):
            raise UserError(
                f"{path}: is of {metadata.model.name}, task {metadata.task}, but "
                f"{checkpoints[0]} is of {first.model.name}, task {first.task}; give one model's"
            )
        cache = caches.setdefault(metadata.preprocessing, FilmCache(metadata.preprocessing))
        annotated = _spread(_unseen_annotated(metadata, films, cache), settings.max_films)
        for method in settings.methods:
            reason = why_no_map(loaded.model, method)
            if reason is not None:
                left_out[method] = f"the model {reason}"
        scorer = FilmScorer(loaded, settings.seed)
        sanity = {film.film_id for film in _spread(annotated, settings.sanity_films)}
        for film in annotated:
            if not scorer.sees_lesion(film):
                left_out[film.film_id] = "its circle lies outside of what the model sees"
                continue
            scores += scorer.baselines(film)
            for method in settings.methods:
                if method not in left_out:
                    scores.append(
                        scorer.score(
                            film,
                            method,
                            layer=settings.layer,
                            steps=settings.steps,
                            channels=settings.score_channels,
                            sanity=film.film_id in sanity,
                        )
                    )
            label = f"{metadata.model.name}, checkpoint {number}/{len(checkpoints)}"
            on_progress(label, 1, len(annotated) * len(checkpoints))
    if first is None or not scores:
        raise UserError(
            "no film with a lesion circle is of a patient whom the checkpoints have not seen; "
            "give those of a cross-validation, or other films"
        )
    return _result(first, checkpoints, settings, scores, left_out)


def write_localisation(folder: Path, result: dict[str, Any]) -> Path:
    """Write ``localisation.json`` into ``folder``; returns its path."""
    path = folder / LOCALISATION_FILE
    write_json(path, result)
    return path


def _unseen_annotated(
    metadata: CheckpointMetadata, films: Sequence[Film], cache: FilmCache
) -> list[Film]:
    """Films with a circle that the task is posed on, of patients not seen in training."""
    classes = TASKS[metadata.task].classes
    seen = seen_films([metadata], films, cache).patients
    return [
        film
        for film, known in zip(films, seen, strict=True)
        if not known
        and film.severity in classes
        and any(finding.radius is not None for finding in film.findings)
    ]


def _spread(films: Sequence[Film], count: int | None) -> list[Film]:
    """``count`` of the films, evenly spread over their order."""
    if count is None or count >= len(films):
        return list(films)
    return [films[i * len(films) // count] for i in range(count)]


def _result(
    metadata: CheckpointMetadata,
    checkpoints: Sequence[Path],
    settings: LocalisationSettings,
    scores: list[FilmScore],
    left_out: dict[str, str],
) -> dict[str, Any]:
    films = {(score.film, score.patient, score.severity) for score in scores}
    return {
        "schema": SCHEMA,
        "kind": KIND,
        "model": metadata.model.name,
        "task": metadata.task,
        "checkpoints": len(checkpoints),
        "training": {key: metadata.training.get(key) for key in ("protocol", "config")},
        "films": len(films),
        "patients": len({patient for _, patient, _ in films}),
        "films_by_severity": dict(sorted(Counter(severity for *_, severity in films).items())),
        "settings": settings.to_json(),
        "methods": {
            method: _summarise([score for score in scores if score.method == method])
            for method in settings.methods
            if method not in left_out
        },
        "left_out": left_out,
        "baselines": {
            name: {
                metric: _interval([s for s in scores if s.method == name], metric)
                for metric in ("pointing_game", "energy_in_lesion")
            }
            for name in BASELINES
        },
        "per_film": [asdict(score) for score in scores],
        "environment": environment(),
    }


def _summarise(scores: list[FilmScore]) -> dict[str, Any]:
    checked = [score for score in scores if score.sanity_checked]
    correlation = _interval(checked, "sanity_rank_correlation")
    value = correlation["value"]
    return {
        "layer": scores[0].layer,
        "films": len(scores),
        "flat_maps": sum(score.flat for score in scores),
        **{metric: _interval(scores, metric) for metric in METRICS},
        "deletion_curve": _mean_curve([score.deletion for score in scores]),
        "insertion_curve": _mean_curve([score.insertion for score in scores]),
        "sanity": {
            "films": len(checked),
            "undefined": sum(score.sanity_rank_correlation is None for score in checked),
            "rank_correlation": correlation,
            "changed": _changed(checked, value),
        },
    }


def _changed(checked: list[FilmScore], correlation: float | None) -> bool | None:
    if correlation is not None:
        return correlation < UNCHANGED
    # Without a correlation, one of each pair of maps is flat: changed where it is the other.
    return True if any(not score.flat for score in checked) else None


def _interval(scores: list[FilmScore], metric: str) -> dict[str, float | None]:
    known = [(getattr(s, metric), s.patient) for s in scores if getattr(s, metric) is not None]
    return asdict(mean_interval([value for value, _ in known], [patient for _, patient in known]))


def _mean_curve(curves: Sequence[list[float] | None]) -> list[float]:
    drawn = [curve for curve in curves if curve is not None]
    return [sum(values) / len(drawn) for values in zip(*drawn, strict=True)]
