"""From films to breasts and patients, and from probabilities to a decision.

A breast's probabilities are the mean of its films' (Wu et al. 2020, IEEE TMI, average the views of
a breast), a patient's those of the breast that the last class is likelier in (Lotter et al. 2021,
Nature Medicine, take the greater of the two breasts' scores). The last class is the positive one.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from hmc_fast.errors import UserError
from hmc_fast.prediction.scores import FilmScore

LEVELS = ("film", "breast", "patient")


@dataclass(frozen=True)
class Result:
    """One line of a prediction: a film, a breast or a patient, or a film that has no score.

    Of several films, ``file``, ``sop_instance_uid`` and ``sha256`` name each, with ``;`` between.
    ``error`` says why there are no probabilities.
    """

    patient: str
    side: str
    view: str
    file: str
    sop_instance_uid: str
    sha256: str
    probabilities: tuple[float, ...]
    rule: str
    error: str


def check_level(level: str) -> None:
    """Raises :class:`UserError` for an unknown one."""
    if level not in LEVELS:
        raise UserError(f"unknown level {level!r}; choose one of {', '.join(LEVELS)}")


def results(scores: Sequence[FilmScore], level: str) -> Iterator[Result]:
    """What the films of whole patients say at a level; films without a score come as themselves.

    Films of which nobody knows the side are breasts of their own.
    """
    groups: dict[object, list[FilmScore]] = {}
    for index, score in enumerate(scores):
        patient, side = score.entry.patient, score.entry.side
        key: object = patient
        if level == "film" or score.error:
            key = index
        elif level == "breast":
            key = (patient, side) if side else index
        groups.setdefault(key, []).append(score)
    for members in groups.values():
        yield _result(members, level)


def predicted_class(probabilities: Sequence[float], threshold: float | None) -> int:
    """The likelier class, or of two classes, class 1 from ``threshold`` on."""
    if threshold is None:
        return int(np.argmax(probabilities))
    return int(probabilities[1] >= threshold)


def _result(members: Sequence[FilmScore], level: str) -> Result:
    first = members[0]
    if len(members) == 1:
        return Result(*_columns(members), first.probabilities, first.rule, first.error)
    if level == "breast":
        return Result(*_columns(members), _mean(members), _mean_rule(members), "")
    breasts: dict[object, list[FilmScore]] = {}
    for index, score in enumerate(members):
        breasts.setdefault(score.entry.side or index, []).append(score)
    means = {side: _mean(films) for side, films in breasts.items()}
    side = max(means, key=lambda breast: means[breast][-1])
    rule = _mean_rule(breasts[side])
    if len(breasts) > 1:
        rule = f"greater of {len(breasts)} breasts: {rule}"
    return Result(*_columns(members), means[side], rule, "")


def _columns(members: Sequence[FilmScore]) -> tuple[str, str, str, str, str, str]:
    entries = [score.entry for score in members]
    return (
        entries[0].patient,
        "+".join(dict.fromkeys(entry.side for entry in entries if entry.side)),
        "+".join(dict.fromkeys(entry.view for entry in entries if entry.view)),
        ";".join(entry.path for entry in entries),
        ";".join(entry.uid for entry in entries if entry.uid),
        ";".join(entry.sha256 for entry in entries),
    )


def _mean(members: Sequence[FilmScore]) -> tuple[float, ...]:
    return tuple(np.mean([score.probabilities for score in members], axis=0).tolist())


def _mean_rule(members: Sequence[FilmScore]) -> str:
    rules = ", ".join(dict.fromkeys(score.rule for score in members))
    return f"mean of {len(members)} films: {rules}" if len(members) > 1 else rules
