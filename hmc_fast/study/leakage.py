"""What a split alone buys: a probe that learns nothing, under a leaking and an honest protocol.

The probe is the nearest neighbour on quantiles of a film's intensities and gradients. Rotating a
film hardly changes them, so where copies of one film are on both sides, the nearest training film
is another copy of the test film and hands over its label.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from sklearn.metrics import balanced_accuracy_score
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from hmc_fast.data import TASKS, Film, FilmCache, FilmDataset, Preprocessing, make_folds
from hmc_fast.data.films import rotated_copies
from hmc_fast.data.folds import AUGMENT_FIRST
from hmc_fast.progress import Progress, no_progress

PROBE_SIZE = 128
"""Films are reduced to this many pixels a side: the probe needs no detail."""
QUANTILES = 32


@dataclass(frozen=True)
class ProbeResult:
    """The probe under one protocol: pooled accuracy, and AUC (of its hard decisions)."""

    protocol: str
    copies: int
    accuracy: float
    auc: float


def probe_features(image: NDArray[np.floating]) -> NDArray[np.float64]:
    """Quantiles of intensities and of gradient magnitudes of a film ``[H, W]``: ``[64]``.

    Of the disk within the film alone, which a rotation keeps.
    """
    rows, columns = np.gradient(np.asarray(image, np.float64))
    height, width = image.shape
    y, x = np.ogrid[:height, :width]
    disk = np.hypot(y - (height - 1) / 2, x - (width - 1) / 2) < min(height, width) / 2 - 1
    levels = np.linspace(0, 1, QUANTILES)
    return np.concatenate(
        [np.quantile(values[disk], levels) for values in (image, np.hypot(rows, columns))]
    )


def run_probe(
    films: list[Film],
    task_name: str,
    *,
    protocols: Sequence[str],
    fold_count: int,
    copies: int,
    seed: int,
    on_progress: Progress = no_progress,
) -> list[ProbeResult]:
    """Cross-validate the nearest neighbour under each protocol.

    Rotated copies of films are made under ``augment-first`` alone; the other protocols have each
    film once.

    Raises :class:`hmc_fast.UserError` where films or folds do not fit the task.
    """
    task = TASKS[task_name]
    selected, _ = task.select(films)
    copied = rotated_copies(selected, copies) if AUGMENT_FIRST in protocols else selected
    features = _features(copied, on_progress)
    results = []
    for protocol in protocols:
        one_each = protocol != AUGMENT_FIRST
        members = [film for film in copied if not (one_each and film.rotation)]
        member_labels = task.select(members)[1]
        folds = make_folds(members, member_labels, task, fold_count, seed, protocol)
        table = np.stack([features[film.sample_id] for film in members])
        truth = np.array(member_labels)
        decided = np.empty_like(truth)
        for fold in range(fold_count):
            train, test = folds.split(members, fold)
            probe = make_pipeline(StandardScaler(), KNeighborsClassifier(1))
            decided[test] = probe.fit(table[train], truth[train]).predict(table[test])
        results.append(
            ProbeResult(
                protocol,
                1 if one_each else copies,
                float(np.mean(decided == truth)),
                float(balanced_accuracy_score(truth, decided)),
            )
        )
    return results


def _features(films: list[Film], on_progress: Progress) -> dict[str, NDArray[np.float64]]:
    dataset = FilmDataset(films, [0] * len(films), FilmCache(Preprocessing.square(PROBE_SIZE)))
    features = {}
    for number, film in enumerate(films):
        features[film.sample_id] = probe_features(dataset.film(number)[0].numpy())
        on_progress("probe", 1, len(films))
    return features
