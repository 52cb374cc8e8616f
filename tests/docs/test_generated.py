"""What README and docs show of records is what the records say."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from statistics import median
from types import ModuleType

import pytest

from hmc_fast.export.attention import FORMS, RUNTIME_FORMS

ROOT = Path(__file__).parents[2]


def script(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(name, ROOT / "scripts" / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(scope="module")
def records() -> ModuleType:
    return script("draw_records")


@pytest.fixture(scope="module")
def status() -> ModuleType:
    return script("readme_status")


@pytest.mark.parametrize("name", ["leak.svg", "speed.svg"])
def test_the_pictures_are_those_of_the_records(records: ModuleType, name: str) -> None:
    draw: Callable[[], str] = records.PICTURES[name]
    assert (ROOT / "docs" / name).read_text(encoding="utf-8") == draw()


def test_a_bar_is_as_long_as_its_value(records: ModuleType) -> None:
    panel = records.Panel("t", "n", [records.Bar("a", 3.0, "3"), records.Bar("b", 6.0, "6")])
    room = records.WIDTH - records.LEFT - records.RIGHT
    assert f'width="{room / 2:.1f}"' in panel.svg(0)
    assert f'width="{room:.1f}"' in panel.svg(0)


def test_the_status_is_that_of_the_records(status: ModuleType) -> None:
    page = (ROOT / "README.md").read_text(encoding="utf-8")
    assert status.updated(page) == page


def test_a_stale_status_is_seen(status: ModuleType) -> None:
    page = f"a\n{status.BEGIN}\nstale figure\n{status.END}\nb\n"
    made = status.updated(page)
    assert "stale figure" not in made
    assert made.startswith("a\n")
    assert made.endswith("\nb\n")


def test_without_records_nothing_is_called_measured(
    status: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(status, "RESULTS", tmp_path)
    rows = [status.cpu_row(), status.kernels_row(), status.runtime_row(), status.engines_row()]
    assert all(row[1] != "measured" for row in rows)


def test_a_table_without_the_newest_kernels_says_so(
    status: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = tmp_path / "kernel-resources"
    folder.mkdir()
    row = "| {} | bf16 | 64 |\n"
    old, new = row.format("delta"), row.format("delta") + row.format("join_sources")
    (folder / "triton-3.6.0.md").write_text(f"1 builds, 0 failing.\n{old}")
    (folder / "triton-3.8.0.md").write_text(f"2 builds, 0 failing.\n{new}")
    monkeypatch.setattr(status, "RESULTS", tmp_path)
    older, newer = status.kernels_row()[2].split("; ")
    assert older == "Triton 3.6.0: 1 builds, 0 failing (before the newest kernels)"
    assert newer == "Triton 3.8.0: 2 builds, 0 failing"


def test_every_record_is_listed_with_its_command() -> None:
    listing = script("list_records")
    page = (ROOT / "docs" / "results.md").read_text(encoding="utf-8")
    assert listing.updated(page) == page
    rows = listing.table().splitlines()[2:]
    assert len(rows) == len(list((ROOT / "bench" / "results").rglob("*.json*")))
    assert all("`hmc-fast " in row or "`python scripts/" in row for row in rows)


def test_the_profile_is_that_of_its_record_and_adds_up() -> None:
    profile = script("profile_cpu")
    record = json.loads((ROOT / "bench" / "results" / "cpu-profile.json").read_text())
    page = (ROOT / "docs" / "benchmark.md").read_text(encoding="utf-8")
    assert profile.updated(page, record) == page
    for row in record["rows"]:
        groups = dict(row["groups_ms"])
        whole = groups.pop("whole")
        assert sum(groups.values()) == pytest.approx(whole, rel=1e-3)


def test_the_training_step_is_that_of_its_record() -> None:
    steps = script("training_step")
    record = json.loads((ROOT / "bench" / "results" / "cpu-training.json").read_text())
    page = (ROOT / "docs" / "benchmark.md").read_text(encoding="utf-8")
    assert steps.updated(page, record) == page
    assert len({len(row["ms"]) for row in record["rows"]}) == 1
    medians = {
        (row["precision"], row["attention"], row["kept"]): median(row["ms"])
        for row in record["rows"]
    }
    for precision in steps.PRECISIONS:
        ours = medians[precision, "cpu", True]
        assert ours == min(time for way, time in medians.items() if way[0] == precision)


def test_the_pace_of_predictions_is_that_of_its_record() -> None:
    bulk = script("bulk_prediction")
    record = json.loads((ROOT / "bench" / "results" / "bulk-prediction.json").read_text())
    page = (ROOT / "docs" / "predict.md").read_text(encoding="utf-8")
    assert bulk.updated(page, record) == page
    speed = record["speed"]
    assert speed["films_per_second"] > speed["single_pass_films_per_second"]
    assert speed["films_per_second"] * speed["single_command_seconds"] >= 2
    assert record["archive"]["films"] == 20_000
    assert record["archive"]["resume_seconds"] < 10
    first, *_, last = record["archive"]["resident_mib_by_quarter"]
    assert last - first < 32


def test_the_graphs_are_those_of_their_record_and_keep_their_bounds() -> None:
    graphs = script("measure_graphs")
    record = json.loads((ROOT / "bench" / "results" / "graph-forms.json").read_text())
    page = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
    assert graphs.updated(page, record) == page
    rows = {(row["runtime"], row["form"]): row for row in record["runtimes"]}
    assert (
        rows["onnxruntime", "blocks"]["peak_mib"] <= 2048 < rows["onnxruntime", "whole"]["peak_mib"]
    )
    assert all(row["logit_difference"] <= 1e-3 for row in rows.values())


def test_the_engines_are_those_of_their_record_and_keep_their_bounds() -> None:
    engines = script("build_engines")
    record = json.loads((ROOT / "bench" / "results" / "engine-builds.json").read_text())
    page = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
    assert engines.updated(page, record) == page
    rows = {(row["model"], row["form"], row["target"]): row for row in record["builds"]}
    assert len(rows) == len(engines.MODELS) * len(FORMS) * len(engines.TARGETS)
    for model in engines.MODELS:
        for target in engines.TARGETS:
            engine = rows[model, RUNTIME_FORMS["tensorrt"], target]["engine"]
            assert engine["fused_attentions"] == engine["attentions"]
            assert engine["activation_bytes"] <= 1.6e9
