"""The lesion study as its users run it: figures, record, resumption, refusals."""

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from sklearn.metrics import roc_auc_score

from hmc_fast import UserError, create_model
from hmc_fast.cli.app import run
from hmc_fast.data import write_phantoms
from hmc_fast.study import (
    lesion_attention,
    lesion_figures,
    lesion_run,
    lesion_table,
    read_lesion_record,
)
from hmc_fast.study.lesion_figures import changes_table
from hmc_fast.study.lesion_record import write_lesion_record

FOLDS = 2


@dataclass(frozen=True)
class Finished:
    """A study of two seeds, its arguments without folder and seeds, and what it printed."""

    folder: Path
    arguments: list[str]
    printed: dict[str, Any]

    @property
    def path(self) -> Path:
        return self.folder / "lesions.json"

    def again(self, *arguments: str) -> int:
        return run([*self.arguments, "--out", str(self.folder), *arguments])


def save_trunk(path: Path) -> None:
    state = create_model("resnet18").state_dict()
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Finished:
    folder = tmp_path_factory.mktemp("lesions")
    write_phantoms(folder / "films", patients=24, size=256, seed=3)
    torch.manual_seed(0)
    save_trunk(folder / "trunk.safetensors")
    arguments = ["study", "lesions", "--data", str(folder / "films"), "--trunk", "resnet18"]
    arguments += ["--weights", str(folder / "trunk.safetensors"), "--size", "256"]
    arguments += ["--folds", str(FOLDS)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(lesion_attention, "EPOCHS", 1)
        printed: list[Any] = []
        patch.setattr("hmc_fast.cli.study.print_json", printed.append)
        out = ["--out", str(folder / "out"), "--seeds", "2", "--nested", "--attention", "--json"]
        assert run([*arguments, *out]) == 0
    return Finished(folder / "out", arguments, printed[0])


def test_figures_are_those_of_the_record(finished: Finished) -> None:
    record = read_lesion_record(finished.path)
    figures = {figure["label"]: figure for figure in finished.printed["figures"]}
    assert next(iter(figures)) == "AUC, recipe chosen by inner folds"
    assert [figure.label for figure in lesion_figures(record)] == list(figures)
    for rule, formula in (("own", "v"), ("bilateral", "2v - v_mate")):
        aucs = []
        for seed in record.seeds:
            labels = [film.label for film in seed.films]
            aucs.append(roc_auc_score(labels, [getattr(film, rule) for film in seed.films]))
            printed = figures[f"AUC: {formula}"]["seeds"][seed.seed]
            assert printed["value"] == pytest.approx(aucs[-1])
            assert printed["low"] <= printed["value"] <= printed["high"]
        assert figures[f"AUC: {formula}"]["mean"]["value"] == pytest.approx(sum(aucs) / 2)
        assert min(aucs) > 0.8
    seed = record.seeds[0]
    patients = sorted({film.patient for film in seed.films})
    films_of = [[film for film in seed.films if film.patient == name] for name in patients]
    by_patient = roc_auc_score(
        [max(film.label for film in films) for films in films_of],
        [max(film.bilateral for film in films) for films in films_of],
    )
    printed = figures["AUC of patients: 2v - v_mate"]["seeds"][0]
    assert printed["value"] == pytest.approx(by_patient)
    pointed = [film.distance for film in record.seeds[1].films if film.distance is not None]
    assert len(pointed) == sum(film.label for film in record.seeds[1].films)
    (inside,) = (f for label, f in figures.items() if label.startswith("maximum of the map in the"))
    assert inside["seeds"][1]["value"] == pytest.approx(sum(d <= 0 for d in pointed) / len(pointed))
    assert inside["mean"]["value"] > 0.5
    chosen = figures["AUC, recipe chosen by inner folds"]["seeds"][0]["value"]
    assert chosen > 0.8


def test_the_record_is_about_films_and_names_no_folder(finished: Finished) -> None:
    text = finished.path.read_text()
    assert str(finished.folder.parent) not in text
    record = read_lesion_record(finished.path)
    (command,) = record.commands
    assert command.startswith("hmc-fast study lesions --data films --weights trunk.safetensors ")
    assert record.data["films"] == 48
    assert {film.side for film in record.seeds[0].films} == {"L", "R"}
    assert {film.tissue for film in record.seeds[0].films} <= {
        "fatty",
        "fatty-glandular",
        "dense-glandular",
    }
    assert lesion_table(record).rows[0][1:] != lesion_table(record).rows[1][1:]
    again = finished.folder / "again.json"
    write_lesion_record(again, record)
    assert again.read_text() == text


def test_finished_seeds_are_skipped_and_missing_ones_come_out_the_same(
    finished: Finished, monkeypatch: pytest.MonkeyPatch
) -> None:
    record = json.loads(finished.path.read_text())
    fitted: list[int] = []
    fit = lesion_run.cross_validate_lesion_head

    def counted(*arguments: Any, seed: int, **named: Any) -> Any:
        fitted.append(seed)
        return fit(*arguments, seed=seed, **named)

    monkeypatch.setattr(lesion_run, "cross_validate_lesion_head", counted)
    monkeypatch.setattr(lesion_attention, "EPOCHS", 1)
    before = finished.path.read_bytes()
    assert finished.again("--seeds", "2", "--nested", "--attention") == 0
    assert fitted == []
    assert finished.path.read_bytes() == before
    del record["seeds"][0]["nested"][1], record["seeds"][1]
    finished.path.write_text(json.dumps(record))
    assert finished.again("--seeds", "2", "--nested", "--attention") == 0
    assert fitted == [1]
    assert finished.path.read_bytes() == before


def test_other_settings_weights_or_films_are_refused(
    finished: Finished, tmp_path: Path, fails: Callable[..., str]
) -> None:
    call = [*finished.arguments, "--out", finished.folder]
    assert "folds 2 there, 3 now" in fails(*call, "--folds", "3")
    assert "preprocessing" in fails(*call, "--size", "128")
    other = tmp_path / "trunk.safetensors"
    save_trunk(other)
    assert "other weights" in fails(*call, "--weights", other)
    write_phantoms(tmp_path / "films", patients=24, size=256, seed=4)
    assert "other films or findings" in fails(*call, "--data", tmp_path / "films")
    elsewhere = (*finished.arguments, "--out", tmp_path / "out")
    assert "choose one of resnet50, resnet18" in fails(*elsewhere, "--trunk", "vgg16")
    (tmp_path / "damaged.safetensors").write_bytes(b"no parameters")
    assert "damaged" in fails(*elsewhere, "--weights", tmp_path / "damaged.safetensors")
    assert not (tmp_path / "out").exists()
    assert "no such file" in fails(*call, "--weights", tmp_path / "missing")


def damage_schema(record: dict[str, Any]) -> None:
    record["schema"] = "x"


def damage_score(record: dict[str, Any]) -> None:
    record["seeds"][0]["films"]["own"][3] += 0.5


def damage_column(record: dict[str, Any]) -> None:
    record["seeds"][0]["films"]["label"].pop()


def damage_fold(record: dict[str, Any]) -> None:
    folds = record["seeds"][1]["films"]["fold"]
    folds[0] = 1 - folds[0]


def damage_film(record: dict[str, Any]) -> None:
    films = record["seeds"][0]["films"]["film"]
    films[0] = films[1]


def damage_nested(record: dict[str, Any]) -> None:
    record["seeds"][0]["nested"][0]["films"].reverse()


def damage_seeds(record: dict[str, Any]) -> None:
    record["seeds"] = []


def damage_settings(record: dict[str, Any]) -> None:
    del record["settings"]["preprocessing"]


@pytest.mark.parametrize(
    "damage",
    [
        damage_schema,
        damage_score,
        damage_column,
        damage_fold,
        damage_film,
        damage_nested,
        damage_seeds,
        damage_settings,
    ],
)
def test_a_damaged_record_is_refused(
    finished: Finished, tmp_path: Path, damage: Callable[[dict[str, Any]], None]
) -> None:
    record = json.loads(finished.path.read_text())
    damage(record)
    path = tmp_path / "lesions.json"
    path.write_text(json.dumps(record))
    with pytest.raises(UserError, match="no record of a lesion study, or damaged"):
        read_lesion_record(path)
    path.write_text("{")
    with pytest.raises(UserError, match="cannot be read as JSON"):
        read_lesion_record(path)


def test_one_change_at_a_time_is_compared_with_the_fixed_recipe(finished: Finished) -> None:
    record = read_lesion_record(finished.path)
    settings = record.settings
    equalised = replace(settings, preprocessing=replace(settings.preprocessing, clahe=True))
    table = changes_table(record, [record, replace(record, settings=equalised)])
    labels = [row[0] for row in table.rows]
    assert labels == [
        "as it is",
        "a film by itself",
        "top cells in place of maximum",
        "mean in place of maximum",
        "C4 alone",
        "C3 alone",
        "labels of whole films in place of circles",
        "the calcification map in the score too",
        "trained attention over the breast",
        "a film by itself, trained attention over the breast",
        "trained attention over the breasts",
        "a film by itself, trained attention over the breasts",
        "breasts in 256×160 pixels",
        "breasts in 256×160 pixels, contrast equalised (CLAHE)",
    ]
    for row in table.rows[-2:]:
        assert row[2] == "+0.000 [+0.000, +0.000]"
    (labelled,) = (row for row in table.rows if row[0].startswith("labels"))
    assert labelled[2] != table.rows[-1][2]
    own = [
        roc_auc_score([f.label for f in s.films], [f.own for f in s.films]) for s in record.seeds
    ]
    assert float(table.rows[1][1].split()[0]) == pytest.approx(sum(own) / 2, abs=6e-4)
    gain = float(table.rows[1][2].split()[0])
    both = [float(row[1].split()[0]) for row in table.rows[:2]]
    assert gain == pytest.approx(both[1] - both[0], abs=2e-3)
    without = replace(record, seeds=tuple(replace(s, recipes=()) for s in record.seeds))
    with pytest.raises(UserError, match="run study lesions --recipes"):
        changes_table(without)
    with pytest.raises(UserError, match="cannot be compared"):
        changes_table(record, [replace(record, seeds=record.seeds[:1])])
