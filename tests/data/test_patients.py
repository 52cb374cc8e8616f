"""Patients that a checkpoint remembers without their names."""

from dataclasses import replace
from pathlib import Path

from hmc_fast.data import Film, read_mias, write_phantoms
from hmc_fast.data.patients import PatientKeys

ANNA = Film("a1", "Anna", Path("a1.dcm"), ())
BERTA = Film("b1", "Berta", Path("b1.dcm"), ())


def test_other_films_of_a_patient_are_recognised() -> None:
    keys = PatientKeys.of([ANNA], ["digest"])
    other_film = replace(ANNA, film_id="a2", path=Path("a2.dcm"), side="R")
    assert keys.hold([other_film, BERTA, ANNA]) == [True, False, True]
    assert PatientKeys().hold([ANNA]) == [False]


def test_a_patient_of_the_same_name_elsewhere_is_another() -> None:
    keys = PatientKeys.of([ANNA], ["digest"])
    assert keys.hold([replace(ANNA, collection="Ulm")]) == [False]


def test_keys_tell_no_names_and_differ_between_training_sets() -> None:
    first, second = (PatientKeys.of([ANNA, BERTA], [digest]) for digest in ("x", "y"))
    assert first == PatientKeys.of([BERTA, ANNA], ["x"])
    assert len(first.keys) == 2
    assert not {*first.keys} & {*second.keys}
    assert "Anna" not in str(first.to_json())


def test_phantoms_of_another_seed_are_other_patients(tmp_path: Path) -> None:
    for seed in (0, 1):
        write_phantoms(tmp_path / str(seed), 3, 64, seed)
    zero, one = (read_mias(tmp_path / str(seed)) for seed in (0, 1))
    keys = PatientKeys.of(zero, ["x"])
    assert all(keys.hold(zero))
    assert not any(keys.hold(one))
