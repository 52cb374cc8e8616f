"""Predictions as a table: one row a film, kept as CSV."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.special import softmax

from hmc_fast.data import Film
from hmc_fast.errors import UserError
from hmc_fast.evaluation.bilateral import compare_logits
from hmc_fast.evaluation.bootstrap import (
    Interval,
    auc_interval,
    percentile_interval,
    resampled_auc,
)
from hmc_fast.evaluation.metrics import classification_metrics
from hmc_fast.files import read_rows, write_rows, write_text


@dataclass(frozen=True)
class Predictions:
    """Logits ``[films, classes]`` and labels ``[films]`` of films, each held out in ``folds``."""

    films: tuple[str, ...]
    patients: tuple[str, ...]
    folds: tuple[int, ...]
    labels: NDArray[np.int64]
    logits: NDArray[np.float64]
    class_names: tuple[str, ...]

    @classmethod
    def of(
        cls,
        films: Sequence[Film],
        labels: Sequence[int],
        fold: int,
        logits: NDArray[np.floating],
        class_names: Sequence[str],
        *,
        bilateral: bool = False,
    ) -> "Predictions":
        """Predictions of films, compared with the patients' other breasts where ``bilateral``."""
        if bilateral:
            logits, _ = compare_logits(logits, films)
        return cls(
            tuple(film.sample_id for film in films),
            tuple(film.patient_id for film in films),
            (fold,) * len(films),
            np.asarray(labels, np.int64),
            np.asarray(logits, np.float64),
            tuple(class_names),
        )

    @property
    def probabilities(self) -> NDArray[np.float64]:
        return np.asarray(softmax(self.logits, axis=1))

    @property
    def decisions(self) -> NDArray[np.int64]:
        return np.asarray(self.logits.argmax(axis=1))

    def by_fold(self) -> list["Predictions"]:
        """The same predictions, split by the fold that held each film out."""
        folds = np.asarray(self.folds)
        return [self._subset(np.flatnonzero(folds == fold)) for fold in np.unique(folds)]

    def metrics(self) -> dict[str, float | None]:
        """See :func:`hmc_fast.evaluation.classification_metrics`."""
        return classification_metrics(self.probabilities, self.labels)

    def auc_interval(self) -> Interval:
        """See :func:`hmc_fast.evaluation.auc_interval`."""
        return auc_interval(self.probabilities, self.labels, self.patients)

    def _subset(self, index: NDArray[np.intp]) -> "Predictions":
        return Predictions(
            tuple(self.films[i] for i in index),
            tuple(self.patients[i] for i in index),
            tuple(self.folds[i] for i in index),
            self.labels[index],
            self.logits[index],
            self.class_names,
        )

    def save(self, path: Path) -> None:
        """CSV with film, patient, fold, label, and logit and probability per class."""
        table = io.StringIO()
        rows: list[list[Any]] = [_columns(self.class_names)]
        for i, probabilities in enumerate(self.probabilities):
            rows.append(
                [
                    self.films[i],
                    self.patients[i],
                    self.folds[i],
                    self.class_names[self.labels[i]],
                    *(repr(float(x)) for x in self.logits[i]),
                    *(f"{x:.6f}" for x in probabilities),
                ]
            )
        write_rows(table, rows)
        write_text(path, table.getvalue())


def read_predictions(path: Path) -> Predictions:
    """Reread a table; raises :class:`UserError` where it is missing, damaged or doubled."""
    header, numbered = read_rows(path)
    rows = [row for _, row in numbered]
    if not rows:
        raise UserError(f"{path}: holds no prediction")
    class_names = tuple(c.removeprefix("logit_") for c in header if c.startswith("logit_"))
    try:
        predictions = Predictions(
            tuple(row["film"] for row in rows),
            tuple(row["patient"] for row in rows),
            tuple(int(row["fold"]) for row in rows),
            np.array([class_names.index(row["label"]) for row in rows], np.int64),
            np.array([[float(row[f"logit_{c}"]) for c in class_names] for row in rows]),
            class_names,
        )
    except (KeyError, ValueError) as error:
        raise UserError(f"{path}: is no readable prediction table ({error})") from None
    if not np.isfinite(predictions.logits).all():
        film = predictions.films[int(np.flatnonzero(~np.isfinite(predictions.logits).all(1))[0])]
        raise UserError(f"{path}: the logits of film {film} are not finite")
    _check_no_film_twice(predictions.films, str(path))
    return predictions


def pool(parts: Sequence[Predictions]) -> Predictions:
    """Out-of-fold predictions of all folds as one table.

    Raises :class:`UserError` where a film appears in two of them.
    """
    films = tuple(film for part in parts for film in part.films)
    _check_no_film_twice(films, "pooled predictions")
    return Predictions(
        films,
        tuple(patient for part in parts for patient in part.patients),
        tuple(fold for part in parts for fold in part.folds),
        np.concatenate([part.labels for part in parts]),
        np.concatenate([part.logits for part in parts]),
        parts[0].class_names,
    )


def mean_auc_interval(repeats: Sequence[Predictions]) -> Interval:
    """The mean of the AUC of several predictions of the same films, as of repeats of a study.

    Patients are drawn once for all repeats, so the interval is that of the mean.
    """
    return percentile_interval(mean_resampled_auc(repeats))


def mean_resampled_auc(repeats: Sequence[Predictions]) -> NDArray[np.float64]:
    """As :func:`hmc_fast.evaluation.bootstrap.resampled_auc`, the mean over repeats."""
    return np.asarray(
        np.mean([resampled_auc(p.probabilities, p.labels, p.patients) for p in repeats], 0)
    )


def ensemble(members: Sequence[Predictions]) -> Predictions:
    """The mean of the members' probabilities for the same films, in the first one's order.

    Raises :class:`UserError` where the members are not about the same films and labels.
    """
    first = members[0]
    total = np.zeros_like(first.probabilities)
    for member in members:
        if sorted(member.films) != sorted(first.films):
            raise UserError("an ensemble needs predictions of the same films from every member")
        row_of = {film: row for row, film in enumerate(member.films)}
        order = [row_of[film] for film in first.films]
        if not np.array_equal(member.labels[order], first.labels):
            raise UserError("an ensemble needs members that agree on the films' labels")
        total += member.probabilities[order]
    smallest = np.finfo(np.float64).tiny
    return replace(first, logits=np.log(np.maximum(total / len(members), smallest)))


def _columns(class_names: Sequence[str]) -> list[str]:
    return [
        "film",
        "patient",
        "fold",
        "label",
        *(f"logit_{c}" for c in class_names),
        *(f"probability_{c}" for c in class_names),
    ]


def _check_no_film_twice(films: Sequence[str], where: str) -> None:
    seen: set[str] = set()
    for film in films:
        if film in seen:
            raise UserError(f"{where}: film {film} is predicted twice")
        seen.add(film)
