"""The main job: rows, honesty about failures, records and reports."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
from torch import Tensor

from hmc_fast import UserError
from hmc_fast.bench import BenchOptions, BenchRecord, read_record, run_bench, write_reports
from hmc_fast.bench.candidates import PreparedModel
from hmc_fast.bench.record import write_record
from hmc_fast.data import Film
from hmc_fast.training import TrainingConfig

OPTIONS = BenchOptions(
    "hmc_net_resnet18",
    TrainingConfig(size=32, epochs=1),
    folds=2,
    extra_sizes=(64,),
    implementations=("eager", "triton"),
    precisions=("fp32",),
    seconds=0.1,
)
RESULTS = sorted((Path(__file__).parents[2] / "bench" / "results").glob("*.jsonl"))
DATA = {"name": "phantoms", "phantoms": True, "films": 36, "patients": 18}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bench")


@pytest.fixture(scope="module")
def record(phantoms: list[Film], out: Path) -> BenchRecord:
    return run_bench(OPTIONS, phantoms, DATA, out)


def test_one_row_per_candidate_and_size(record: BenchRecord) -> None:
    eager, triton, eager_large, _ = record.rows
    assert eager.status == eager_large.status == "ok"
    assert eager.latency_p50_ms is not None
    assert 0 < eager.latency_p50_ms <= eager.latency_p95_ms
    assert eager.throughput_films_per_s > 0
    assert 100 < eager.inference_peak_mib < 4096
    assert (eager.max_logit_difference, eager.flipped_decisions, eager.auc_difference) == (0, 0, 0)
    assert eager_large.accuracy_mean is None
    assert eager_large.latency_p50_ms is not None
    assert triton.status == "unavailable"
    assert "needs an NVIDIA GPU" in triton.reason
    assert triton.latency_p50_ms is None
    assert 0 < record.attention_share["32"] < record.attention_share["64"] < 1
    assert record.protocol == "patient"


def test_no_parity_no_speed(
    phantoms: list[Film], record: BenchRecord, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = PreparedModel.__call__
    calls = {"count": 0}

    def wrong(self: PreparedModel, images: Tensor) -> Tensor:
        calls["count"] += 1
        return right(self, images) + (0.01 if calls["count"] == 2 else 0)

    monkeypatch.setattr(PreparedModel, "__call__", wrong)
    options = replace(OPTIONS, extra_sizes=(), implementations=("eager",))
    (row,) = run_bench(options, phantoms, DATA, out).rows
    assert row.status == "parity failed"
    assert row.latency_p50_ms is None
    assert "max error" in row.reason


def test_records_are_validated_on_read(record: BenchRecord, tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    write_record(path, record)
    assert read_record(path).rows == record.rows
    lines = path.read_text().splitlines()
    for damaged, message in (
        ([lines[0], lines[1][:-9]], "line 2: is no line of a record"),
        ([lines[0], json.dumps({**json.loads(lines[1]), "color": 1})], "line 2"),
        ([lines[0].replace("bench/1", "bench/9")], "line 1: .*schema is not"),
        (lines[1:], "no complete line of kind run"),
    ):
        path.write_text("\n".join(damaged))
        with pytest.raises(UserError, match=message):
            read_record(path)


def test_reports_say_what_data_and_protocol(record: BenchRecord, tmp_path: Path) -> None:
    markdown, html = write_reports(record, tmp_path)
    for text in (markdown.read_text(), html.read_text()):
        assert "procedural phantoms" in text
        assert "patient-disjoint folds" in text
        assert "not a medical device" in text
        assert "unavailable" in text
    assert html.read_text().count("data:image/png;base64,") == 2
    write_reports(replace(record, data={**DATA, "phantoms": False}), tmp_path)
    assert "procedural phantoms" not in markdown.read_text()


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.name)
def test_committed_records_are_readable(path: Path) -> None:
    assert read_record(path).rows
