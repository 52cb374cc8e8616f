"""The tables of README and docs are those of the committed records."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from types import ModuleType

import pytest

from hmc_fast.study import (
    StudyRecord,
    compare,
    lesion_figures,
    read_lesion_record,
    read_study,
    write_study_record,
)

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "bench" / "results" / "study"


@pytest.fixture
def script() -> ModuleType:
    spec = importlib.util.spec_from_file_location(
        "readme_study", ROOT / "scripts" / "readme_study.py"
    )
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_pages_are_up_to_date(script: ModuleType) -> None:
    pages = [ROOT / "README.md", ROOT / "docs" / "study.md"]
    texts = [page.read_text() for page in pages]
    assert [script.updated(text) for text in texts] == texts
    for name in script.BLOCKS:
        assert "".join(texts).count(f"<!-- {name}:begin -->") == 1, name


def test_committed_records_are_readable() -> None:
    for path in RESULTS.rglob("*.jsonl"):
        assert compare([read_study(path)]).groups, path.name
    lesions = read_lesion_record(RESULTS / "mias-lesions.json")
    assert [seed.seed for seed in lesions.seeds] == [0, 1, 2]
    assert lesions.data["films"] == 258
    rows = json.loads((RESULTS / "mias-leakage.json").read_text())
    assert {row["protocol"] for row in rows} >= {"patient", "augment-first"}


def test_tables_are_written_between_their_markers(
    script: ModuleType,
    study: Callable[..., StudyRecord],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    record = study({"hmc_net": 1.0, "resnet50": 0.0, "vgg16": 0.5})
    write_study_record(tmp_path / "mias-seven-models.jsonl", record)
    monkeypatch.setattr(script, "RESULTS", tmp_path)
    before = (
        "before\n<!-- study:begin -->\nstale\n<!-- study:end -->\nafter <!-- leakage:begin -->\n"
    )
    text = script.updated(before)
    assert text.startswith(
        "before\n<!-- study:begin -->\nPatient-disjoint folds, 5 folds; 80 films"
    )
    assert text.endswith("<!-- study:end -->\nafter <!-- leakage:begin -->\n")
    assert "stale" not in text
    assert "| vgg16 | 0." in text
    assert "Smallest detectable gap of mean ranks with 3 models" in text
    assert script.updated(text) == text
    rows = [{"what": "x", "protocol": "image", "copies": 1, "accuracy": 0.5, "auc": None}]
    (tmp_path / "mias-leakage.json").write_text(json.dumps(rows))
    text = script.updated("<!-- leakage:begin -->\n<!-- leakage:end -->")
    assert "| x | Folds of films, patients on both sides (leaks) | 1 | 0.500 | – |" in text


def test_every_lesion_figure_is_in_its_table(script: ModuleType) -> None:
    record = read_lesion_record(RESULTS / "mias-lesions.json")
    text = script.updated("<!-- lesions:begin -->\n<!-- lesions:end -->")
    for figure in lesion_figures(record):
        assert f"| {figure.label} | " in text
        assert f"| {figure.mean} |\n" in text
    assert f"trunk resnet50 with weights `{record.settings.weights}`, frozen" in text


def test_ablations_are_compared_with_the_plain_setting(
    script: ModuleType,
    study: Callable[..., StudyRecord],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (tmp_path / "ablations").mkdir()
    for file, skill, config in (
        ("base", 0.0, {}),
        ("a-target", 2.0, {"lesion_weight": 0.5, "weights": "resnet50=w.safetensors"}),
    ):
        record = study({"hmc_net": skill}, name=file, **config)
        write_study_record(tmp_path / "ablations" / f"{file}.jsonl", record)
    monkeypatch.setattr(script, "RESULTS", tmp_path)
    text = script.updated("<!-- ablations:begin -->\n<!-- ablations:end -->")
    plain, changed = (line.split(" | ") for line in text.splitlines()[-3:-1])
    assert "hmc_net with one option changed. Patient-disjoint folds" in text
    assert plain[0] == "| as it is"
    assert plain[2] == "– |"
    assert changed[0] == "| weights resnet50=w.safetensors, lesion_weight 0.5"
    assert float(changed[2].split()[0]) == pytest.approx(
        float(changed[1].split()[0]) - float(plain[1].split()[0]), abs=0.0011
    )
    assert float(changed[2].split()[0]) > 0.2
