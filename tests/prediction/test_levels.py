"""Films, breasts and patients."""

import pytest

from hmc_fast import UserError
from hmc_fast.prediction.levels import check_level, predicted_class, results
from hmc_fast.prediction.manifest import Entry
from hmc_fast.prediction.scores import FilmScore


def score(patient: str, side: str, view: str, p: float, error: str = "") -> FilmScore:
    entry = Entry(f"{patient}{side}{view}{p}", f"uid{p}", f"sha{p}", patient, side, view)
    return FilmScore(entry, () if error else (1 - p, p), "" if error else "v", error)


SCORES = [
    score("a", "L", "CC", 0.2),
    score("a", "L", "MLO", 0.4),
    score("a", "R", "CC", 0.9),
    score("a", "R", "MLO", 0, "is damaged"),
    score("b", "", "CC", 0.6),
    score("b", "", "CC", 0.5),
]


def test_every_film_has_its_line() -> None:
    lines = list(results(SCORES, "film"))
    assert [line.probabilities for line in lines] == [s.probabilities for s in SCORES]
    assert [line.error for line in lines] == ["", "", "", "is damaged", "", ""]


def test_a_breast_is_the_mean_of_its_views() -> None:
    lines = list(results(SCORES, "breast"))
    assert [(line.patient, line.side, line.view) for line in lines] == [
        ("a", "L", "CC+MLO"),
        ("a", "R", "CC"),
        ("a", "R", "MLO"),
        ("b", "", "CC"),
        ("b", "", "CC"),
    ]
    assert lines[0].probabilities == pytest.approx((0.7, 0.3))
    assert lines[0].rule == "mean of 2 films: v"
    assert lines[0].file == "aLCC0.2;aLMLO0.4"
    assert (lines[1].probabilities, lines[1].rule) == (SCORES[2].probabilities, "v")
    assert lines[2].error == "is damaged"


def test_a_patient_is_her_breast_with_more_evidence() -> None:
    lines = list(results(SCORES, "patient"))
    assert [(line.patient, line.side, line.error) for line in lines] == [
        ("a", "L+R", ""),
        ("a", "R", "is damaged"),
        ("b", "", ""),
    ]
    assert lines[0].probabilities == SCORES[2].probabilities
    assert lines[0].rule == "greater of 2 breasts: v"
    assert lines[2].probabilities == (0.4, 0.6)  # films of unknown side are breasts of their own


def test_decisions() -> None:
    assert predicted_class((0.6, 0.4), None) == 0
    assert predicted_class((0.6, 0.4), 0.4) == 1
    assert predicted_class((0.6, 0.4), 0.41) == 0
    assert predicted_class((0.2, 0.3, 0.5), None) == 2
    with pytest.raises(UserError, match="unknown level 'woman'"):
        check_level("woman")
