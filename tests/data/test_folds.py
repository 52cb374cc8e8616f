"""Folds never split a patient; damaged ones are refused."""

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hmc_fast import UserError
from hmc_fast.data import TASKS, Film, Finding, Folds, make_folds, read_folds

TASK = TASKS["malignant"]


def drawn_films(labels: list[tuple[int, ...]]) -> tuple[list[Film], list[int]]:
    """One patient an entry, one film a label."""
    films, flat = [], []
    for patient, patient_labels in enumerate(labels):
        for side, label in enumerate(patient_labels):
            findings = (Finding("MISC", "malignant"),) if label else ()
            films.append(Film(f"f{patient}_{side}", f"p{patient}", Path("x"), findings))
            flat.append(label)
    return films, flat


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.lists(st.integers(0, 1), min_size=1, max_size=4).map(tuple), min_size=4, max_size=40
    ),
    st.integers(2, 6),
    st.integers(0, 2**31),
)
def test_no_patient_on_both_sides_ever(
    labels: list[tuple[int, ...]], count: int, seed: int
) -> None:
    films, flat = drawn_films(labels)
    try:
        folds = make_folds(films, flat, TASK, count, seed)
    except UserError:
        return
    held_out: Counter[str] = Counter()
    for fold in range(count):
        train, test = folds.split(films, fold)
        assert not {films[i].patient_id for i in train} & {films[i].patient_id for i in test}
        assert sorted(train + test) == list(range(len(films)))
        assert {flat[i] for i in test} == set(flat)
        held_out.update(films[i].film_id for i in test)
    assert set(held_out.values()) == {1}
    assert len(held_out) == len(films)


def good_folds() -> tuple[list[Film], Folds]:
    films, labels = drawn_films([(0, 1), (1, 0), (0, 0), (1, 1), (0, 1), (0, 0)])
    return films, make_folds(films, labels, TASK, 2, seed=7)


def test_saved_folds_are_reread_as_they_were_and_repeat_with_the_seed(tmp_path: Path) -> None:
    films, folds = good_folds()
    folds.save(tmp_path / "folds.json")
    assert read_folds(tmp_path / "folds.json").assignments == folds.assignments
    assert good_folds()[1].assignments == folds.assignments
    table = (tmp_path / "folds.csv").read_text().splitlines()
    assert table[0] == "film,patient,label,fold"
    assert len(table) == len(films) + 1


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda a: a.append(dict(a[0])), "film f0_0 is assigned twice"),
        (lambda a: a[0].update(fold=1 - a[1]["fold"]), "patient p0 is in folds"),
        (lambda a: a[0].update(fold=9), "is in fold 9 of 2"),
        (lambda a: a[0].pop("patient"), "folds.json: is damaged .*patient"),
        (
            lambda a: a.clear() or a.append({"film": "x", "patient": "y", "label": 0, "fold": 0}),
            "2 folds of 1 films",
        ),
    ],
)
def test_damaged_fold_files(tmp_path: Path, damage: object, message: str) -> None:
    path = tmp_path / "folds.json"
    good_folds()[1].save(path)
    values = json.loads(path.read_text())
    damage(values["assignments"])  # type: ignore[operator]
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match=message):
        read_folds(path)
    path.write_text("{")
    with pytest.raises(UserError, match="cannot be read as JSON"):
        read_folds(path)


def test_numbers_that_are_none_and_json_without_a_bottom(tmp_path: Path) -> None:
    path = tmp_path / "folds.json"
    good_folds()[1].save(path)
    text = path.read_text()
    for damaged, message in (
        (text.replace('"seed": 7', '"seed": Infinity'), "Infinity is no JSON number"),
        (text.replace('"seed": 7', '"seed": 1e999'), "folds.json: is damaged .*seed"),
        (text.replace('"seed": 7', '"seed": true'), "folds.json: is damaged .*seed"),
        ("[" * 100_000, "nested too deeply"),
    ):
        assert damaged != text
        path.write_text(damaged)
        with pytest.raises(UserError, match=message):
            read_folds(path)


def test_more_folds_than_films_are_refused_at_once() -> None:
    with pytest.raises(UserError, match="1000000000000 folds of 12 films"):
        replace(good_folds()[1], count=10**12)


def test_folds_about_other_films_are_refused() -> None:
    films, folds = good_folds()
    with pytest.raises(UserError, match="is missing from the data"):
        folds.split(films[:-1], 0)
    with pytest.raises(UserError, match="film new is in no fold"):
        folds.split([*films, Film("new", "p0", Path("x"), ())], 0)
    moved = [Film(films[0].film_id, "p5", Path("x"), ()), *films[1:]]
    with pytest.raises(UserError, match="is of patient p0 there, p5 in the data"):
        folds.split(moved, 0)


def test_too_few_patients_are_told_what_would_do() -> None:
    films, labels = drawn_films([(0, 1), (1, 0), (0,), (0,)])
    with pytest.raises(UserError) as error:
        make_folds(films, labels, TASK, 3, 0)
    assert str(error.value) == (
        "3 folds need 3 patients of each class, one a fold; the data has 4 of rest, 2 of "
        "malignant: use at most 2 folds"
    )
    make_folds(films, labels, TASK, 2, 0)
    with pytest.raises(UserError, match="needs at least 2"):
        make_folds(films, labels, TASK, 1, 0)


@pytest.mark.parametrize("count", [2, 5])
def test_no_number_of_folds_is_advised_that_cannot_be(count: int) -> None:
    films, labels = drawn_films([(0, 1), (0, 0), (0, 0)])
    with pytest.raises(UserError) as error:
        make_folds(films, labels, TASK, count, 0)
    assert str(error.value) == (
        f"{count} folds need {count} patients of each class, one a fold; the data has 3 of rest, "
        "1 of malignant: even 2 folds need 2 of each, add films of more"
    )
    some = good_folds()[1].assignments[0]
    lacking = (
        replace(some, fold=0, label=0),
        replace(some, film="b", patient="b", fold=1, label=1),
    )
    with pytest.raises(UserError, match="fold 0 does not hold every class") as error:
        Folds(TASK.name, 0, 2, lacking)
    assert "fewer" not in str(error.value)
