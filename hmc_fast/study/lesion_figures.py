"""The figures of a lesion study, all computed from its record."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hmc_fast.data.folds import PROTOCOL, PROTOCOL_TITLES
from hmc_fast.data.mias import TISSUES
from hmc_fast.errors import UserError
from hmc_fast.evaluation import Interval, Predictions, mean_auc_interval
from hmc_fast.evaluation.bilateral import BILATERAL_RULE, OWN_RULE, margin_logits, patient_scores
from hmc_fast.evaluation.bootstrap import mean_interval, percentile_interval
from hmc_fast.evaluation.operating import resampled_average_precision, resampled_sensitivity
from hmc_fast.evaluation.predictions import mean_resampled_auc
from hmc_fast.reporting import with_interval
from hmc_fast.study.lesion_record import FilmRow, LesionRecord, SeedRecord
from hmc_fast.study.lesions import RECIPES, TASK, LesionRecipe
from hmc_fast.study.tables import Table
from hmc_fast.training.lesion_fit import RING

UNCHANGED = "as it is"
RULES = {"bilateral": BILATERAL_RULE, "own": OWN_RULE}
Figure = Callable[[Sequence[SeedRecord]], Interval]
"""The mean of a figure over seeds, with its patient-cluster bootstrap 95 % interval.

Patients are drawn once for all seeds.
"""


@dataclass(frozen=True)
class FigureRow:
    """A figure of every seed that has it, and their mean."""

    label: str
    seeds: dict[int, Interval]
    mean: Interval


def lesion_figures(record: LesionRecord) -> list[FigureRow]:
    """Every figure of a record, the nested one first where it was asked for."""
    chosen = [s for s in record.seeds if len(s.nested) == record.settings.folds]
    rows = [_row("AUC, recipe chosen by inner folds", _nested_auc, chosen)] if chosen else []
    for label, figure in _fixed_figures(record.seeds[0].films):
        rows.append(_row(label, figure, record.seeds))
    return rows


def lesion_table(record: LesionRecord) -> Table:
    """Figures in rows, seeds and their mean in columns; what they were made from as its note."""
    seeds = [seed.seed for seed in record.seeds]
    rows = [
        [row.label, *(_cell(row.seeds.get(seed)) for seed in seeds), _cell(row.mean)]
        for row in lesion_figures(record)
    ]
    return Table(
        ["figure [95 % CI]", *(f"seed {seed}" for seed in seeds), "mean"], rows, protocol(record)
    )


def changes_table(record: LesionRecord, others: Sequence[LesionRecord] = ()) -> Table:
    """What one change of the fixed recipe costs or gains, paired by patients.

    The recipes that differ from the fixed one in a single setting, then the records ``others`` of
    the same films and seeds at other settings, by the fixed recipe.

    Raises :class:`UserError` where the record has no scores of other recipes, or one of ``others``
    is of other films or seeds.
    """
    fixed = [[film.bilateral for film in seed.films] for seed in record.seeds]
    rows = [[UNCHANGED, str(_mean_auc(record.seeds, fixed)), "–"]]
    if not all(seed.recipes for seed in record.seeds):
        raise UserError("the record has no scores of all recipes; run study lesions --recipes")
    scored = [{row.recipe: row.scores for row in seed.recipes} for seed in record.seeds]
    for recipe in scored[0]:
        label = _change(recipe)
        if label is not None and all(recipe in seed for seed in scored):
            scores = [seed[recipe] for seed in scored]
            rows.append([label, *_against(record.seeds, scores, fixed)])
    for other in others:
        if _who(other) != _who(record):
            raise UserError("records of other films, folds or seeds cannot be compared")
        scores = [tuple(film.bilateral for film in seed.films) for seed in other.seeds]
        rows.append([_preparation(other), *_against(record.seeds, scores, fixed)])
    return Table(["change", "AUC [95 % CI]", "gain [95 % CI]"], rows, protocol(record))


def _preparation(record: LesionRecord) -> str:
    """How the films of a record were prepared."""
    prepared = record.settings.preprocessing
    contrast = ", contrast equalised (CLAHE)" if prepared.clahe else ""
    return f"breasts in {prepared.height}×{prepared.width} pixels{contrast}"


def _who(record: LesionRecord) -> list[list[tuple[str, int, int]]]:
    """Films, classes and folds of every seed."""
    return [[(f.film, f.label, f.fold) for f in seed.films] for seed in record.seeds]


def _change(recipe: LesionRecipe) -> str | None:
    """What differs from the fixed recipe, where it is one setting alone, or attention and one."""
    fixed, labels = RECIPES[0], []
    if recipe.stages != fixed.stages:
        labels.append(f"{' and '.join(recipe.stages)} alone")
    if recipe.readout != fixed.readout:
        labels.append(f"{recipe.readout.replace('_', ' ')} in place of {fixed.readout}")
    if recipe.bilateral != fixed.bilateral:
        labels.append("a film by itself")
    if recipe.circles != fixed.circles:
        labels.append("labels of whole films in place of circles")
    if recipe.calcification != fixed.calcification:
        labels.append("the calcification map in the score too")
    if recipe.attention != fixed.attention:
        labels.append(f"trained attention over the {recipe.attention}")
    alone = len(labels) == 1 or recipe.attention != fixed.attention
    return ", ".join(labels) if labels and alone else None


def _against(
    seeds: Sequence[SeedRecord],
    scores: Sequence[Sequence[float]],
    fixed: Sequence[Sequence[float]],
) -> list[str]:
    """The AUC of ``scores`` and what it is more than that of ``fixed``."""
    predictions = [_predictions(s.films, v) for s, v in zip(seeds, scores, strict=True)]
    base = [_predictions(s.films, v) for s, v in zip(seeds, fixed, strict=True)]
    gain = percentile_interval(mean_resampled_auc(predictions) - mean_resampled_auc(base))
    assert gain.value is not None
    assert gain.low is not None
    assert gain.high is not None
    return [
        str(mean_auc_interval(predictions)),
        f"{gain.value:+.3f} [{gain.low:+.3f}, {gain.high:+.3f}]",
    ]


def _mean_auc(seeds: Sequence[SeedRecord], scores: Sequence[Sequence[float]]) -> Interval:
    return mean_auc_interval(
        [_predictions(seed.films, values) for seed, values in zip(seeds, scores, strict=True)]
    )


def protocol(record: LesionRecord) -> str:
    """What the figures were made from, and how many variants were looked at, in one line."""
    data, settings = record.data, record.settings
    size = f"{settings.preprocessing.height}×{settings.preprocessing.width} pixels"
    nested = sum(len(seed.nested) == settings.folds for seed in record.seeds)
    left_out = len(record.seeds[0].left_out)
    return (
        f"{PROTOCOL_TITLES[PROTOCOL]}, {settings.folds} folds; {data['films']} films of "
        f"{data['patients']} patients, task {TASK.name}, breasts at native scale in {size}, "
        f"trunk {settings.trunk} with weights `{settings.weights}`, frozen; {left_out} films with "
        f"a lesion that has no circle in the breast are scored, not learned from. {len(RECIPES)} "
        f"readouts were declared; the fixed one is the first, and the choice by inner folds was "
        f"made in {nested} of {len(record.seeds)} seeds."
    )


def _fixed_figures(films: Sequence[FilmRow]) -> list[tuple[str, Figure]]:
    """The figures of the fixed recipe; ``films`` say how many each is about."""
    malignant = [film for film in films if film.label]
    calcified = sum(film.calcification for film in malignant)
    located = [film for film in malignant if film.distance is not None]
    inside, beside = (
        np.mean([getattr(film, name) for film in located])
        for name in ("chance_inside", "chance_beside")
    )
    share = f"prevalence {len(malignant) / len(films):.3f}"
    figures: list[tuple[str, Figure]] = []
    for rule, formula in RULES.items():
        named: list[tuple[str, Figure]] = [
            ("AUC", _auc(rule)),
            ("AUC of patients", _patient_auc(rule)),
            ("sensitivity at 90 % specificity", _resampled(rule, resampled_sensitivity)),
            (f"average precision ({share})", _resampled(rule, resampled_average_precision)),
            (
                f"AUC, {calcified} malignant films with calcifications against the rest",
                _auc(rule, lambda film: not film.label or film.calcification),
            ),
            (
                f"AUC, {len(malignant) - calcified} other malignant films against the rest",
                _auc(rule, lambda film: not film.label or not film.calcification),
            ),
            *(_of_tissue(rule, films, tissue) for tissue in TISSUES.values()),
        ]
        figures += [(f"{label}: {formula}", figure) for label, figure in named]
    figures += [
        (
            f"maximum of the map in the lesion, {len(located)} films (chance {inside:.3f})",
            _pointing(0),
        ),
        (
            f"maximum of the map in it or within {RING} pixels (chance {beside:.3f})",
            _pointing(RING),
        ),
    ]
    return figures


def _of_tissue(rule: str, films: Sequence[FilmRow], tissue: str) -> tuple[str, Figure]:
    labels = [film.label for film in films if film.tissue == tissue]
    label = f"AUC, {tissue} ({sum(labels)} of {len(labels)} films malignant)"
    return label, _auc(rule, lambda film: film.tissue == tissue)


def _row(label: str, figure: Figure, seeds: Sequence[SeedRecord]) -> FigureRow:
    return FigureRow(label, {seed.seed: figure([seed]) for seed in seeds}, figure(seeds))


def _cell(interval: Interval | None) -> str:
    if interval is None:
        return "not run"
    return with_interval(interval.value, interval.low, interval.high)


def _predictions(films: Sequence[FilmRow], scores: Sequence[float]) -> Predictions:
    return Predictions(
        tuple(film.film for film in films),
        tuple(film.patient for film in films),
        tuple(film.fold for film in films),
        np.array([film.label for film in films], np.int64),
        margin_logits(np.array(scores, np.float64)),
        TASK.class_names,
    )


def _auc(rule: str, keep: Callable[[FilmRow], bool] = lambda film: True) -> Figure:
    def figure(seeds: Sequence[SeedRecord]) -> Interval:
        kept = [[film for film in seed.films if keep(film)] for seed in seeds]
        return mean_auc_interval(
            [_predictions(films, [getattr(film, rule) for film in films]) for films in kept]
        )

    return figure


def _patient_auc(rule: str) -> Figure:
    """By the largest score of a patient's films; a patient with a malignant film is malignant."""

    def of(seed: SeedRecord) -> Predictions:
        patients = [film.patient for film in seed.films]
        names, scores = patient_scores(
            np.array([getattr(film, rule) for film in seed.films]), patients
        )
        _, labels = patient_scores(np.array([float(film.label) for film in seed.films]), patients)
        folds = {film.patient: film.fold for film in seed.films}
        return Predictions(
            names,
            names,
            tuple(folds[name] for name in names),
            labels.astype(np.int64),
            margin_logits(scores),
            TASK.class_names,
        )

    return lambda seeds: mean_auc_interval([of(seed) for seed in seeds])


def _resampled(rule: str, statistic: Callable[..., NDArray[np.float64]]) -> Figure:
    def of(seed: SeedRecord) -> NDArray[np.float64]:
        return statistic(
            np.array([getattr(film, rule) for film in seed.films]),
            np.array([film.label for film in seed.films]),
            [film.patient for film in seed.films],
        )

    return lambda seeds: percentile_interval(np.mean([of(seed) for seed in seeds], 0))


def _pointing(reach: float) -> Figure:
    """The share of located malignant films whose maximum lies within ``reach`` of a circle."""

    def figure(seeds: Sequence[SeedRecord]) -> Interval:
        hits: dict[tuple[str, str], list[float]] = {}
        for film in (film for seed in seeds for film in seed.films):
            if film.distance is not None:
                hits.setdefault((film.film, film.patient), []).append(film.distance <= reach)
        return mean_interval([float(np.mean(h)) for h in hits.values()], [p for _, p in hits])

    return figure


def _nested_auc(seeds: Sequence[SeedRecord]) -> Interval:
    def of(seed: SeedRecord) -> Predictions:
        scores = {f: s for row in seed.nested for f, s in zip(row.films, row.scores, strict=True)}
        return _predictions(seed.films, [scores[film.film] for film in seed.films])

    return mean_auc_interval([of(seed) for seed in seeds])
