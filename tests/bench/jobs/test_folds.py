"""The main job: rows, honesty about failures, records and reports."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from samples import sampled
from torch import Tensor, nn

from hmc_fast import UserError
from hmc_fast.bench.cases import parse_case
from hmc_fast.bench.jobs import folds
from hmc_fast.bench.jobs.folds import DEFAULT_PEERS, FoldsOptions, run_folds
from hmc_fast.bench.measuring.clock import TimingResults
from hmc_fast.bench.peers import peer
from hmc_fast.bench.peers.eager import EAGER
from hmc_fast.bench.record import Record, read_record, write_record
from hmc_fast.bench.report.pages import write_reports
from hmc_fast.bench.run import sample_quietly
from hmc_fast.cli.app import run
from hmc_fast.data import Film
from hmc_fast.models import attention_blocks
from hmc_fast.training import TrainingConfig

pytestmark = pytest.mark.systems  # whole main jobs

OPTIONS = FoldsOptions(
    "hmc_net_resnet18",
    TrainingConfig(size=32, epochs=1),
    folds=2,
    extra_sizes=(64,),
    peers=("eager", "triton"),
    precisions=("fp32",),
    seconds=0.1,
)
RESULTS = sorted((Path(__file__).parents[3] / "bench" / "results").glob("*.jsonl"))
DATA = {"name": "phantoms", "phantoms": True, "films": 36, "patients": 18}


@pytest.fixture(scope="module")
def out(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bench")


@pytest.fixture(scope="module")
def record(phantoms: list[Film], out: Path) -> Record:
    return run_folds(OPTIONS, phantoms, DATA, out)


def test_one_row_per_candidate_and_size(record: Record) -> None:
    by_key = {(row.peer, row.size): row for row in record.measurements}
    assert len(by_key) == len(record.measurements) == 4
    eager, eager_large, triton = (
        by_key["eager", 32],
        by_key["eager", 64],
        by_key["triton", 32],
    )
    assert eager.status == eager_large.status == "ok"
    assert eager.p50_ms is not None
    assert 0 < eager.p50_ms <= eager.p95_ms
    assert eager.throughput_per_s > 0
    assert 100 < eager.peak_mib < 4096
    scores = eager.scores
    assert scores is not None
    assert (scores.max_logit_difference, scores.flipped_decisions) == (0, 0)
    assert scores.auc_difference == 0
    assert eager.throughput_batch == 8
    assert eager_large.scores is None
    assert eager_large.p50_ms is not None
    assert triton.status == "unavailable"
    assert "need an NVIDIA GPU" in triton.reason
    assert triton.p50_ms is None
    assert 0 < record.study.attention_share["32"] < record.study.attention_share["64"] < 1
    assert record.study.protocol == "patient"


def test_a_record_tells_how_long_the_whole_job_took(
    phantoms: list[Film], record: Record, out: Path
) -> None:
    assert record.study is not None
    assert 1 < record.study.seconds < 600
    again = run_folds(replace(OPTIONS, extra_sizes=(), peers=("triton",)), phantoms, DATA, out)
    assert again.study is not None
    assert again.study.seconds is None


def test_the_load_of_the_throughput_stands_in_its_row(
    phantoms: list[Film], record: Record, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def loaded(*arguments: Any) -> tuple[TimingResults, dict[str, float]]:
        results, _ = sample_quietly(*arguments)
        return results, {"others_percent": 55.0, "steal_percent": 0.0}

    monkeypatch.setattr(folds, "sample_quietly", loaded)
    options = replace(OPTIONS, extra_sizes=(), peers=("eager",))
    (row,) = run_folds(options, phantoms, DATA, out).measurements
    assert row.load is not None
    assert row.load["others_percent"] == 55


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_an_engine_that_cannot_run_here_is_a_row_with_its_build(
    phantoms: list[Film], record: Record, out: Path
) -> None:
    engines = ("tensorrt", "tensorrt_rtx")
    assert set(engines) < set(DEFAULT_PEERS)
    options = replace(OPTIONS, extra_sizes=(), peers=("eager", *engines), precisions=("bf16",))
    rows = {row.peer: row for row in run_folds(options, phantoms, DATA, out).measurements}
    built = rows["tensorrt_rtx"]
    assert (built.status, built.p50_ms, built.scores) == ("built", None, None)
    assert built.engine is not None
    assert built.engine.batch == OPTIONS.throughput_batch
    assert built.engine.fused_attentions == built.engine.attentions
    assert rows["tensorrt"].status == "unavailable"
    assert rows["tensorrt"].reason


def test_default_peers_that_are_not_installed_say_what_installs_them(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    runtimes = [name for name in DEFAULT_PEERS if peer(name).family == "runtime"]
    assert runtimes == ["onnxruntime", "openvino", "tensorrt", "tensorrt_rtx"]
    case = parse_case("hmc_net_resnet18@32x1")
    for name in runtimes:
        module = "tensorrt" if name == "tensorrt_rtx" else name
        with monkeypatch.context() as patch:
            patch.setattr(f"hmc_fast.bench.peers.{module}.installed_version", lambda name: None)
            reason = peer(name).why_not(case, torch.float32, torch.device("cpu"))
        assert "pip install 'hmc-fast[" in (reason or "")


def test_no_parity_no_speed(
    phantoms: list[Film], record: Record, out: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def build(module: nn.Module, example: Tensor) -> Callable[[Tensor], Tensor]:
        return lambda images: module(images) + 0.01

    variant = replace(EAGER.models[0], build=build)
    changed = replace(EAGER, name="changed", models=(variant,))
    monkeypatch.setattr(folds, "peer_of", lambda name: changed)
    options = replace(OPTIONS, extra_sizes=(), peers=("changed",))
    (row,) = run_folds(options, phantoms, DATA, out).measurements
    assert row.status == "parity failed"
    assert row.p50_ms is None
    assert "max error" in row.reason


def test_attention_behind_closed_gates_is_held_to_parity(
    phantoms: list[Film], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A fitted lesion head decides alone, so that broken attention would change no logit."""

    def build(module: nn.Module, example: Tensor) -> Callable[[Tensor], Tensor]:
        for block in attention_blocks(module):
            block.out_proj.weight.data.mul_(1.01)
        return module

    changed = replace(EAGER, name="changed", models=(replace(EAGER.models[0], build=build),))
    monkeypatch.setattr(folds, "peer_of", lambda name: changed if name == "changed" else EAGER)
    options = FoldsOptions(
        "hmc_net_resnet18_lesions",
        TrainingConfig(size=64, head_epochs=0),
        folds=2,
        peers=("eager", "changed"),
        precisions=("fp32",),
        seconds=0.1,
    )
    rows = run_folds(options, phantoms, DATA, tmp_path).measurements
    assert {row.peer: row.status for row in rows} == {"eager": "ok", "changed": "parity failed"}


def test_records_are_validated_on_read(record: Record, tmp_path: Path) -> None:
    path = tmp_path / "record.jsonl"
    write_record(path, record)
    assert read_record(path).measurements == record.measurements
    lines = path.read_text().splitlines()
    for damaged, message in (
        ([lines[0], lines[1][:-9]], "line 2: is no line of a record"),
        ([lines[0], json.dumps({**json.loads(lines[1]), "color": 1})], "color"),
    ):
        path.write_text("\n".join(damaged))
        (problem,) = read_record(path).problems
        assert message in problem
    for header in (lines[0].replace("bench/2", "bench/9"), lines[1]):
        path.write_text("\n".join([header, *lines[1:]]))
        with pytest.raises(UserError, match="no line of kind run"):
            read_record(path)


def test_reports_say_what_data_and_protocol(record: Record, tmp_path: Path) -> None:
    markdown, html = write_reports([("now", record)], tmp_path)
    for text in (markdown.read_text(), html.read_text()):
        assert "procedural phantoms" in text
        assert "patient-disjoint folds" in text
        assert "not a medical device" in text
        assert "unavailable" in text
    assert html.read_text().count("data:image/png;base64,") == 2
    study = replace(record.study, data={**DATA, "phantoms": False})
    write_reports([("now", replace(record, study=study))], tmp_path)
    assert "procedural phantoms" not in markdown.read_text()


@pytest.mark.parametrize("preset", sampled(("small", "full"), ["small"]))
def test_the_presets_for_films_run_as_they_stand(
    preset: str, phantom_folder: Path, tmp_path: Path
) -> None:
    """But for the number of pixels and folds."""
    arguments = ["bench", "--data", str(phantom_folder), "--preset", preset, "--size", "64"]
    arguments += ["--folds", "2", "--peer", "eager", "--precision", "fp32", "--seconds", "0.05"]
    assert run([*arguments, "--out", str(tmp_path)]) == 0
    record = read_record(tmp_path / "record.jsonl")
    assert record.study is not None
    assert [row.status for row in record.measurements] == ["ok"]
    assert record.options["model"] == "hmc_net_lesions"


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.name)
def test_committed_records_are_readable(path: Path) -> None:
    assert read_record(path).measurements
