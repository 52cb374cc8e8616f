"""What ``hmc-fast localise`` measured of one model's maps, as ``localisation.json`` holds it.

    schema 1, kind "localisation", model, task, checkpoints, training (protocol, config), films,
    patients, films_by_severity,
    settings (methods, steps, shares, sanity_films, score_channels, layer, max_films, seed),
    methods: {NAME: {
        layer, films, flat_maps,
        pointing_game, energy_in_lesion, deletion_auc, insertion_auc: INTERVAL,
        deletion_curve, insertion_curve: mean probability at each of settings.shares,
        sanity: {films, undefined, rank_correlation: INTERVAL, changed}}}
    left_out: {method or film: reason}
    baselines: {"uniform" | "brightness": {pointing_game, energy_in_lesion: INTERVAL}}
    per_film: one row for each film and method
    environment

INTERVAL is {value, low, high}: the mean over films with its patient-cluster bootstrap 95 %
interval, null where nothing defines it. ``undefined`` counts the films on which either map is flat;
``changed`` is null where the maps of the model itself are.
"""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from hmc_fast.errors import UserError
from hmc_fast.schema import STRICT, parse_json, read_json_as

SCHEMA = 1
KIND = "localisation"
LOCALISATION_FILE = "localisation.json"
METRICS = ("pointing_game", "energy_in_lesion", "deletion_auc", "insertion_auc")


@dataclass(frozen=True)
class Interval:
    """A mean with its 95 % interval, None where nothing defines it."""

    __pydantic_config__ = STRICT
    value: float | None
    low: float | None
    high: float | None


@dataclass(frozen=True)
class Sanity:
    """Rank correlations with the maps of shuffled weights."""

    __pydantic_config__ = STRICT
    films: int
    undefined: int
    rank_correlation: Interval
    changed: bool | None


@dataclass(frozen=True)
class MethodScores:
    """How good one method's maps are."""

    __pydantic_config__ = STRICT
    layer: str | None
    films: int
    flat_maps: int
    pointing_game: Interval
    energy_in_lesion: Interval
    deletion_auc: Interval
    insertion_auc: Interval
    deletion_curve: list[float]
    insertion_curve: list[float]
    sanity: Sanity


@dataclass(frozen=True)
class BaselineScores:
    """The same of a map that needs no model."""

    __pydantic_config__ = STRICT
    pointing_game: Interval
    energy_in_lesion: Interval


@dataclass(frozen=True)
class Localisation:
    """The file :data:`LOCALISATION_FILE`."""

    __pydantic_config__ = STRICT
    schema: Literal[1]
    kind: Literal["localisation"]
    model: str
    task: str
    checkpoints: int
    training: dict[str, Any]
    films: int
    patients: int
    films_by_severity: dict[str, int]
    settings: dict[str, Any]
    methods: dict[str, MethodScores]
    left_out: dict[str, str]
    baselines: dict[str, BaselineScores]
    per_film: list[dict[str, Any]]
    environment: dict[str, Any]


def read_localisation(path: Path) -> dict[str, Any]:
    """Reread a result; raises :class:`UserError` where the file is none of this schema."""
    values = read_json_as(dict[str, Any], path)
    if values.get("kind") != KIND:
        raise UserError(f"{path}: holds no localisation scores of hmc-fast localise")
    if values.get("schema") != SCHEMA:
        raise UserError(
            f"{path}: has schema {values.get('schema')}; this release reads schema {SCHEMA}, run "
            "hmc-fast localise again"
        )
    check_localisation(values, str(path))
    return values


def check_localisation(values: dict[str, Any], source: str) -> None:
    """Raises :class:`UserError` where ``values`` are not of :class:`Localisation`."""
    parse_json(Localisation, json.dumps(values), source)
