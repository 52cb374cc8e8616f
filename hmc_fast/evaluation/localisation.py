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

from pathlib import Path
from typing import Any

from hmc_fast.errors import UserError
from hmc_fast.files import read_json

SCHEMA = 1
KIND = "localisation"
LOCALISATION_FILE = "localisation.json"
METRICS = ("pointing_game", "energy_in_lesion", "deletion_auc", "insertion_auc")
FIELDS = (
    "schema", "kind", "model", "task", "checkpoints", "training", "films", "patients",
    "films_by_severity",
    "settings", "methods", "left_out", "baselines", "per_film", "environment",
)  # fmt: skip


def read_localisation(path: Path) -> dict[str, Any]:
    """Reread a result; raises :class:`UserError` where the file is none of this schema."""
    values = read_json(path)
    if not isinstance(values, dict) or values.get("kind") != KIND:
        raise UserError(f"{path}: holds no localisation scores of hmc-fast localise")
    if values.get("schema") != SCHEMA or set(values) != set(FIELDS):
        raise UserError(
            f"{path}: has schema {values.get('schema')} or lacks fields; this release reads "
            f"schema {SCHEMA}, run hmc-fast localise again"
        )
    return values
