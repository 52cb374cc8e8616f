"""The lesion study from films to its record: features, fits by fold and seed, resumed by seed."""

import json
from collections.abc import Sequence
from dataclasses import asdict, fields, replace
from hashlib import sha256
from pathlib import Path

import numpy as np

from hmc_fast.data import Film, FilmCache, make_folds
from hmc_fast.environment import environment
from hmc_fast.errors import UserError
from hmc_fast.files import make_folder
from hmc_fast.models import HMCNet, create_model
from hmc_fast.progress import Progress, no_progress
from hmc_fast.study.folder import job_lock
from hmc_fast.study.lesion_record import (
    LESIONS_FILE,
    FilmRow,
    LesionRecord,
    LesionSettings,
    NestedRow,
    RecipeRow,
    SeedRecord,
    read_lesion_record,
    write_lesion_record,
)
from hmc_fast.study.lesions import (
    TASK,
    Cohort,
    LesionRecipe,
    Pointing,
    cross_validate_lesion_head,
    nested_fold,
    recipe_scores,
    training_positions,
)
from hmc_fast.study.run import describe_films
from hmc_fast.training.features import cache_features, read_features
from hmc_fast.training.lesion_fit import CALCIFICATION

FEATURES_FOLDER = "features"
LESION_TRUNKS = ("resnet50", "resnet18")


def run_lesion_study(
    films: list[Film],
    weights: Path,
    settings: LesionSettings,
    folder: Path,
    *,
    seeds: Sequence[int],
    nested: bool = False,
    recipes: Sequence[LesionRecipe] = (),
    command: str,
    on_progress: Progress = no_progress,
) -> LesionRecord:
    """Cross-validate the lesion head with every seed that ``folder`` does not hold yet.

    A seed draws the folds and the background positions. The record is written after each seed, and
    after each fold of a nested choice.

    Args:
        films: a MIAS folder's.
        weights: of the trunk, a safetensors file.
        settings: of the study.
        folder: for the record and, under ``features``, the trunk's features.
        seeds: one partition into folds each.
        nested: whether recipes are chosen by inner folds as well.
        recipes: that score the films as well, for the table of what each is worth:
            :data:`SCORED_RECIPES`, followed by :data:`ATTENTION_RECIPES` or not.
        command: for the record, with neutral paths.
        on_progress: told of films, then of folds.

    Returns:
        The record with all seeds of the folder.

    Raises:
        UserError: the folder belongs to other settings, films or weights, or another process works
            in it; otherwise as :func:`cache_features` and :func:`cross_validate_lesion_head`.
    """
    trunk = _trunk(weights, settings)  # what cannot be read is said before anything is written
    chosen, labels = TASK.select(films)
    make_folder(folder)
    with job_lock(folder, wait=False) as mine:
        if not mine:
            raise UserError(f"{folder}: another process is working in this folder")
        path = folder / LESIONS_FILE
        record = LesionRecord(settings, sha256(weights.read_bytes()).hexdigest(), {}, ())
        held = read_lesion_record(path) if path.is_file() else record
        _refuse(path, _changes(held, record))
        files = cache_features(
            [film.path for film in chosen],
            trunk,
            FilmCache(settings.preprocessing),
            folder / FEATURES_FOLDER,
            on_film=lambda done: on_progress("features of the films", done, len(chosen)),
        )
        channels = trunk.stage_channels["C3"], trunk.stage_channels["C4"]
        cohort = Cohort(tuple(chosen), tuple(labels), tuple(files), channels)
        data = {**describe_films(cohort.films), "sha256": _films_digest(cohort)}
        if held.data and held.data["sha256"] != data["sha256"]:
            _refuse(path, ["other films or findings"])
        commands = tuple(dict.fromkeys([*held.commands, command]))
        record = replace(record, data=data, commands=commands, seeds=held.seeds)
        steps = len(seeds) * settings.folds * (1 + nested + bool(recipes))
        for seed in seeds:
            record = _run_seed(cohort, record, seed, path, steps, on_progress)
            if nested:
                record = _choose(cohort, record, seed, path, steps, on_progress)
            if recipes:
                record = _score_recipes(cohort, record, seed, recipes, path, steps, on_progress)
    return record


def _trunk(weights: Path, settings: LesionSettings) -> HMCNet:
    if settings.trunk not in LESION_TRUNKS:
        raise UserError(f"trunk {settings.trunk!r}: choose one of {', '.join(LESION_TRUNKS)}")
    trunk = create_model(settings.trunk, weights=weights)
    assert isinstance(trunk, HMCNet)  # as all of LESION_TRUNKS are
    return trunk


def _films_digest(cohort: Cohort) -> str:
    """SHA-256 of all that a fit takes from the films: pixels, patients and findings."""
    rows = [
        [
            film.film_id,
            film.patient_id,
            read_features(file).digest,
            [asdict(f) for f in film.findings],
        ]
        for film, file in zip(cohort.films, cohort.files, strict=True)
    ]
    return sha256(json.dumps(rows).encode()).hexdigest()


def _changes(held: LesionRecord, now: LesionRecord) -> list[str]:
    old, new = held.settings.to_json(), now.settings.to_json()
    changed = [f"{key} {old[key]!r} there, {new[key]!r} now" for key in new if old[key] != new[key]]
    return changed + ["other weights"] * (held.weights_sha256 != now.weights_sha256)


def _refuse(path: Path, changed: list[str]) -> None:
    """Raises :class:`UserError` where anything has changed."""
    if changed:
        raise UserError(
            f"{path}: holds a study with other settings ({'; '.join(changed)}); use another "
            "folder, or the old settings to continue"
        )


def _run_seed(
    cohort: Cohort, record: LesionRecord, seed: int, path: Path, steps: int, on_progress: Progress
) -> LesionRecord:
    """The record with the seed, computed and written unless it is there."""
    label, folds = f"seed {seed}", record.settings.folds
    if any(known.seed == seed for known in record.seeds):
        on_progress(label, folds, steps)
        return record
    partition = make_folds(list(cohort.films), list(cohort.labels), TASK, folds, seed)
    study = cross_validate_lesion_head(
        cohort,
        partition,
        penalty=record.settings.penalty,
        seed=seed,
        on_fold=lambda fold: on_progress(label, 1, steps),
    )
    own, bilateral = (np.diff(p.logits, axis=1)[:, 0] for p in (study.own, study.bilateral))
    rows = tuple(
        FilmRow(
            film.sample_id,
            film.patient_id,
            film.side,
            cohort.labels[i],
            study.own.folds[i],
            film.tissue,
            any(f.kind == CALCIFICATION and f.severity == "malignant" for f in film.findings),
            float(own[i]),
            float(bilateral[i]),
            **_pointing_fields(study.pointing[i]),
        )
        for i, film in enumerate(cohort.films)
    )
    done = SeedRecord(seed, rows, study.left_out, _machine())
    record = record.with_seed(done)
    write_lesion_record(path, record)
    return record


def _choose(
    cohort: Cohort, record: LesionRecord, seed: int, path: Path, steps: int, on_progress: Progress
) -> LesionRecord:
    """The record with the seed's nested choice, fold by fold, those that are there skipped."""
    label, folds = f"seed {seed}, choice by inner folds", record.settings.folds
    (current,) = (known for known in record.seeds if known.seed == seed)
    missing = [fold for fold in range(folds) if all(fold != row.fold for row in current.nested)]
    on_progress(label, folds - len(missing), steps)
    if not missing:
        return record
    partition = make_folds(list(cohort.films), list(cohort.labels), TASK, folds, seed)
    positions = training_positions(cohort, seed)
    for fold in missing:
        choice = nested_fold(cohort, positions, partition, fold, penalty=record.settings.penalty)
        scores = np.diff(choice.predictions.logits, axis=1)[:, 0].tolist()
        row = NestedRow(
            fold, choice.recipe, choice.inner_auc, choice.predictions.films, tuple(scores)
        )
        current = replace(current, nested=(*current.nested, row))
        record = record.with_seed(current)
        write_lesion_record(path, record)
        on_progress(label, 1, steps)
    return record


def _score_recipes(
    cohort: Cohort,
    record: LesionRecord,
    seed: int,
    recipes: Sequence[LesionRecipe],
    path: Path,
    steps: int,
    on_progress: Progress,
) -> LesionRecord:
    """The record with the scores of the recipes for the seed, those that are there skipped."""
    label, folds = f"seed {seed}, all recipes", record.settings.folds
    (current,) = (known for known in record.seeds if known.seed == seed)
    held = {row.recipe for row in current.recipes}
    missing = [recipe for recipe in recipes if recipe not in held]
    if not missing:
        on_progress(label, folds, steps)
        return record
    partition = make_folds(list(cohort.films), list(cohort.labels), TASK, folds, seed)
    scores = recipe_scores(
        cohort,
        partition,
        missing,
        penalty=record.settings.penalty,
        seed=seed,
        on_fold=lambda fold: on_progress(label, 1, steps),
    )
    rows = tuple(RecipeRow(recipe, tuple(values.tolist())) for recipe, values in scores.items())
    record = record.with_seed(replace(current, recipes=(*current.recipes, *rows)))
    write_lesion_record(path, record)
    return record


def _machine() -> dict[str, object]:
    """The environment without the command, whose paths are this machine's."""
    return {key: value for key, value in environment().items() if key != "command"}


def _pointing_fields(pointing: Pointing | None) -> dict[str, float | None]:
    """The fields of a :class:`FilmRow` that come from its map's maximum."""
    if pointing is None:
        return {field.name: None for field in fields(Pointing)}
    return asdict(pointing)
