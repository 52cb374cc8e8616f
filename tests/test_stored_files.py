"""Every JSON file that is read again: any damage is one line that names the file."""

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hmc_fast import UserError
from hmc_fast.bench.record import read_record
from hmc_fast.data import read_folds
from hmc_fast.evaluation.localisation import METRICS, read_localisation
from hmc_fast.study.folder import read_settings
from hmc_fast.study.lesion_record import read_lesion_record
from hmc_fast.study.record import read_study
from hmc_fast.study.split_check import read_split
from hmc_fast.training.train import read_result

GOLDEN = Path(__file__).parent / "golden" / "study"
RESULTS = Path(__file__).parents[1] / "bench" / "results"
Read = Callable[[Path], Any]


def localisation() -> dict[str, Any]:
    interval = {"value": 0.5, "low": 0, "high": None}
    scores = dict.fromkeys(METRICS, interval)
    sanity = {"films": 1, "undefined": 0, "rank_correlation": interval, "changed": None}
    method = {
        "layer": "msca",
        "films": 1,
        "flat_maps": 0,
        **scores,
        "sanity": sanity,
        "deletion_curve": [1.0, 0.5],
        "insertion_curve": [0.5, 1.0],
    }
    return {
        "schema": 1,
        "kind": "localisation",
        "model": "hmc_net",
        "task": "malignant",
        "checkpoints": 1,
        "training": {"protocol": "patient", "config": {}},
        "films": 1,
        "patients": 1,
        "films_by_severity": {"malignant": 1},
        "settings": {},
        "methods": {"gradcam": method},
        "left_out": {},
        "per_film": [],
        "environment": {},
        "baselines": {"uniform": dict.fromkeys(("pointing_game", "energy_in_lesion"), interval)},
    }


def split(path: Path) -> None:
    read_split(path, path.parent, [])


def documents() -> dict[str, tuple[Any, Read]]:
    """Of each kind a sound document, or its lines, and what reads it."""
    golden = {
        name: json.loads((GOLDEN / name).read_text())
        for name in ("folds.json", "study.json", "hmc_net_resnet18/fold0/result.json")
    }
    lesions = json.loads((RESULTS / "study" / "mias-lesions.json").read_text())
    return {
        "folds.json": (golden["folds.json"], read_folds),
        "study.json": (golden["study.json"], lambda path: read_settings(path.parent)),
        "result.json": (
            golden["hmc_net_resnet18/fold0/result.json"],
            lambda path: read_result(path.parent),
        ),
        "localisation.json": (localisation(), read_localisation),
        "lesions.json": (lesions, read_lesion_record),
        "split.json": (golden["folds.json"], split),
    }


DOCUMENTS = documents()


def without_a_key(values: Any) -> str:
    values = copy.deepcopy(values)
    values.pop(next((k for k in ("assignments", "history") if k in values), sorted(values)[-1]))
    return json.dumps(values)


def a_key_twice(values: Any) -> str:
    last = list(values)[-1]
    return json.dumps(values)[:-1] + f", {json.dumps({last: values[last]})[1:]}"


def other_types(values: Any) -> str:
    return json.dumps({key: {"x": [None]} for key in values})


DAMAGES: dict[str, Callable[[Any], str]] = {
    "deep": lambda values: "[" * 100_000,
    "deep object": lambda values: '{"a":' * 100_000,
    "not JSON": lambda values: json.dumps(values)[:-3],
    "NaN": lambda values: json.dumps({**values, "films": float("nan")}),
    "Infinity": lambda values: json.dumps({**values, "schema": float("inf")}),
    "a list": lambda values: json.dumps([values]),
    "null": lambda values: "null",
    "a key less": without_a_key,
    "a key twice": a_key_twice,
    "other types": other_types,
    "empty": lambda values: "",
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", DOCUMENTS)
def test_damage_is_one_line(name: str, damage: str, tmp_path: Path) -> None:
    document, read = DOCUMENTS[name]
    path = tmp_path / name
    path.write_text(DAMAGES[damage](document))
    with pytest.raises(UserError) as caught:
        read(path)
    assert name in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 2000


@pytest.mark.parametrize("name", [name for name in DOCUMENTS if name != "split.json"])
def test_sound_files_are_read_and_no_bytes_are_not(name: str, tmp_path: Path) -> None:
    document, read = DOCUMENTS[name]
    path = tmp_path / name
    path.write_text(json.dumps(document))
    read(path)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(UserError, match=name):
        read(path)
    path.unlink()
    with pytest.raises(UserError, match=name):
        read(path)


@pytest.mark.parametrize("damage", DAMAGES)
def test_lines_of_a_bench_record(damage: str, tmp_path: Path) -> None:
    first, second, *_ = (RESULTS / "cpu-kernels.jsonl").read_text().splitlines()
    path = tmp_path / "record.jsonl"
    damaged = DAMAGES[damage]
    sound = json.loads(second)
    sound.pop("when", None)  # it has a default: without it a line is sound
    if damage != "empty":
        path.write_text("\n".join([first, damaged(sound)]))
        (problem,) = read_record(path).problems
        assert "record.jsonl line 2: is no line of a record" in problem
        assert "\n" not in problem
    path.write_text("\n".join([damaged(json.loads(first)), second]))
    with pytest.raises(UserError, match="no line of kind run"):
        read_record(path)


@pytest.mark.parametrize("damage", [name for name in DAMAGES if name != "empty"])
@pytest.mark.parametrize("line", [0, 1, -1])
def test_lines_of_a_study_record(line: int, damage: str, tmp_path: Path) -> None:
    lines = (RESULTS / "study" / "mias-seven-models.jsonl").read_text().splitlines()
    path = tmp_path / "study.jsonl"
    path.write_text("\n".join(lines))
    read_study(path)
    lines[line] = DAMAGES[damage](json.loads(lines[line]))
    path.write_text("\n".join(lines))
    with pytest.raises(UserError, match="study.jsonl") as caught:
        read_study(path)
    assert "\n" not in str(caught.value)


def test_rows_of_a_job_belong_together(tmp_path: Path) -> None:
    lines = (RESULTS / "study" / "mias-seven-models.jsonl").read_text().splitlines()
    path = tmp_path / "study.jsonl"
    for change, message in (
        (lambda job: job["films"].pop(), "not equally many"),
        (lambda job: job["logits"][0].append(0.0), "has not 2 logits"),
        (lambda job: job["labels"].__setitem__(0, 0.5), "labels.0"),
        (lambda job: job.update(fold=-1), "fold"),
        (lambda job: job.update(model="../../x", surplus=1), "surplus"),
    ):
        job = json.loads(lines[1])
        change(job)
        path.write_text("\n".join([lines[0], json.dumps(job)]))
        with pytest.raises(UserError, match=message):
            read_study(path)


def test_a_study_folder_with_a_damaged_result(tmp_path: Path) -> None:
    folder = tmp_path / "study"
    shutil.copytree(GOLDEN, folder)
    read_study(folder)
    result = folder / "resnet18" / "fold1" / "result.json"
    result.write_text(result.read_text().replace('"val_loss"', '"val_loss": [], "x"', 1))
    with pytest.raises(UserError, match=r"fold1/result.json: is damaged .*history.0.val_loss"):
        read_study(folder)
