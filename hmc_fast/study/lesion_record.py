"""What a lesion study found, as ``lesions.json`` holds it: every figure can be computed from it.

schema, settings (of :class:`LesionSettings`), recipe, declared_recipes, weights_sha256,
data: name, phantoms, films, patients, sha256 (of pixels, patients and findings)
commands: that made it, with neutral paths
seeds: [{seed, left_out, environment,
    films: a list for each field of :class:`FilmRow`,
    nested: [{fold, recipe, inner_auc, films, scores}]: the folds whose recipe was chosen,
    recipes: [{recipe, scores}]: what each of SCORED_RECIPES, and where it was asked for
        ATTENTION_RECIPES, gives to the films, or empty}]
"""

import json
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np

from hmc_fast.data import Preprocessing
from hmc_fast.errors import UserError
from hmc_fast.evaluation.bilateral import bilateral_scores
from hmc_fast.files import read_json, write_text
from hmc_fast.study.lesions import ATTENTION_RECIPES, RECIPES, SCORED_RECIPES, LesionRecipe
from hmc_fast.training.lesion_fit import PENALTY

SCHEMA = "hmc-fast-lesions/2"
LESIONS_FILE = "lesions.json"


@dataclass(frozen=True)
class LesionSettings:
    """What all seeds of a study share; ``weights`` is the file's name without its folder."""

    trunk: str
    weights: str
    folds: int
    preprocessing: Preprocessing
    penalty: float = PENALTY

    def to_json(self) -> dict[str, Any]:
        return {**asdict(self), "preprocessing": self.preprocessing.to_json()}


@dataclass(frozen=True)
class FilmRow:
    """A held-out film: its scores by itself and against the other breast, and what it shows.

    ``calcification`` says whether a malignant finding of it is one. The last three are those of
    :class:`hmc_fast.study.lesions.Pointing`, None for a film without a malignant circle.
    """

    film: str
    patient: str
    side: str | None
    label: int
    fold: int
    tissue: str | None
    calcification: bool
    own: float
    bilateral: float
    distance: float | None
    chance_inside: float | None
    chance_beside: float | None


@dataclass(frozen=True)
class NestedRow:
    """A fold's held-out films, scored by the recipe that its training films chose."""

    fold: int
    recipe: LesionRecipe
    inner_auc: float
    films: tuple[str, ...]
    scores: tuple[float, ...]


@dataclass(frozen=True)
class RecipeRow:
    """The held-out films' scores by one declared recipe, in the order of the films."""

    recipe: LesionRecipe
    scores: tuple[float, ...]


@dataclass(frozen=True)
class SeedRecord:
    """One partition into folds: its held-out films, the nested choice as far as it is made, and
    the scores of all recipes where they were asked for.
    """

    seed: int
    films: tuple[FilmRow, ...]
    left_out: tuple[str, ...]
    environment: dict[str, Any]
    nested: tuple[NestedRow, ...] = ()
    recipes: tuple[RecipeRow, ...] = ()


@dataclass(frozen=True)
class LesionRecord:
    """A lesion study: settings, SHA-256 of the weights, the films' description, and its seeds."""

    settings: LesionSettings
    weights_sha256: str
    data: dict[str, Any]
    commands: tuple[str, ...]
    seeds: tuple[SeedRecord, ...] = ()

    def with_seed(self, seed: SeedRecord) -> "LesionRecord":
        """The record with one more seed, or with a newer version of one."""
        others = [other for other in self.seeds if other.seed != seed.seed]
        return replace(self, seeds=tuple(sorted([*others, seed], key=lambda other: other.seed)))


def write_lesion_record(path: Path, record: LesionRecord) -> None:
    """Write the record, atomically."""
    values = {
        "schema": SCHEMA,
        "settings": record.settings.to_json(),
        "recipe": asdict(RECIPES[0]),
        "declared_recipes": len(RECIPES),
        "weights_sha256": record.weights_sha256,
        "data": record.data,
        "commands": list(record.commands),
        "seeds": [{**asdict(seed), "films": _columns(seed.films)} for seed in record.seeds],
    }
    write_text(path, json.dumps(values, allow_nan=False) + "\n")


def read_lesion_record(path: Path) -> LesionRecord:
    """Reread a record and check that it is whole and consistent.

    Raises :class:`UserError` where it is missing, of another schema or damaged, where a film is
    scored twice or a patient is in two folds, or where scores do not follow from one another.
    """
    values = read_json(path)
    try:
        if values["schema"] != SCHEMA:
            raise ValueError(f"the schema is {values['schema']}, not {SCHEMA}")
        if _recipe(values["recipe"]) != RECIPES[0]:
            raise ValueError(f"its recipe is {values['recipe']}, not the one of this release")
        if values["declared_recipes"] != len(RECIPES):
            raise ValueError(f"{values['declared_recipes']} recipes were declared, not those here")
        settings = dict(values["settings"])
        preprocessing = Preprocessing.from_json(settings.pop("preprocessing"))
        record = LesionRecord(
            LesionSettings(**settings, preprocessing=preprocessing),
            str(values["weights_sha256"]),
            dict(values["data"]),
            tuple(values["commands"]),
            tuple(_seed(seed) for seed in values["seeds"]),
        )
        if not record.seeds:
            raise ValueError("it holds no seed")
        for seed in record.seeds:
            _check(seed, record)
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise UserError(f"{path}: is no record of a lesion study, or damaged ({error})") from None
    return record


def _columns(films: Sequence[FilmRow]) -> dict[str, list[Any]]:
    return {f.name: [getattr(film, f.name) for film in films] for f in fields(FilmRow)}


def _seed(values: dict[str, Any]) -> SeedRecord:
    columns = values["films"]
    if set(columns) != {f.name for f in fields(FilmRow)}:
        raise ValueError("the films' columns are others")
    rows = zip(*(columns[f.name] for f in fields(FilmRow)), strict=True)
    nested = [
        NestedRow(
            int(row["fold"]),
            _recipe(row["recipe"]),
            float(row["inner_auc"]),
            tuple(row["films"]),
            tuple(row["scores"]),
        )
        for row in values["nested"]
    ]
    return SeedRecord(
        int(values["seed"]),
        tuple(FilmRow(*row) for row in rows),
        tuple(values["left_out"]),
        dict(values["environment"]),
        tuple(nested),
        tuple(
            RecipeRow(_recipe(row["recipe"]), tuple(row["scores"]))
            for row in values.get("recipes", ())
        ),
    )


def _recipe(values: dict[str, Any]) -> LesionRecipe:
    return LesionRecipe(**{**values, "stages": tuple(values["stages"])})


def _check(seed: SeedRecord, record: LesionRecord) -> None:
    """Raises ``ValueError`` where a seed's rows contradict themselves or the record."""
    names = [film.film for film in seed.films]
    doubled = [name for name, count in Counter(names).items() if count > 1]
    if doubled or len(names) != record.data["films"]:
        raise ValueError(f"seed {seed.seed} scores {doubled or len(names)} films, twice or too few")
    if len({(film.patient, film.fold) for film in seed.films}) != record.data["patients"]:
        raise ValueError(f"seed {seed.seed} has a patient in two folds")
    if {film.fold for film in seed.films} != set(range(record.settings.folds)):
        raise ValueError(f"seed {seed.seed} lacks a fold")
    if {film.label for film in seed.films} != {0, 1}:
        raise ValueError(f"seed {seed.seed} has other labels than 0 and 1")
    own = np.array([film.own for film in seed.films])
    patients, sides = ([getattr(film, key) for film in seed.films] for key in ("patient", "side"))
    compared = bilateral_scores(own, patients, sides).scores.tolist()
    if not np.isfinite(own).all() or compared != [film.bilateral for film in seed.films]:
        raise ValueError(f"seed {seed.seed} has scores that do not follow from one another")
    scored = tuple(row.recipe for row in seed.recipes)
    # Earlier records have the declared ones alone.
    if scored not in ((), RECIPES, SCORED_RECIPES, (*SCORED_RECIPES, *ATTENTION_RECIPES)):
        raise ValueError(f"seed {seed.seed} has the scores of other recipes")
    if seed.recipes and seed.recipes[0].scores != tuple(film.bilateral for film in seed.films):
        raise ValueError(f"seed {seed.seed} has two scores of the fixed recipe")
    if any(not all(map(math.isfinite, row.scores)) for row in seed.recipes):
        raise ValueError(f"seed {seed.seed} has no scores of a recipe")
    if len({row.fold for row in seed.nested}) != len(seed.nested):
        raise ValueError(f"seed {seed.seed} has a nested fold twice")
    for row in seed.nested:
        if row.films != tuple(film.film for film in seed.films if film.fold == row.fold):
            raise ValueError(f"seed {seed.seed} has other films in nested fold {row.fold}")
        if row.recipe not in RECIPES or len(row.scores) != len(row.films):
            raise ValueError(f"seed {seed.seed} has a damaged nested fold {row.fold}")
        if not all(map(math.isfinite, row.scores)):
            raise ValueError(f"seed {seed.seed} has no scores in nested fold {row.fold}")
