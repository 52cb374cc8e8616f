"""Engines beside the other peers: run where there is a GPU, else built by the real builder."""

from dataclasses import replace
from pathlib import Path

import pytest
import torch

from hmc_fast.bench.cases import parse_case
from hmc_fast.bench.peers import peer
from hmc_fast.bench.record import Measurement, Record, read_record
from hmc_fast.bench.report.tables import reasons
from hmc_fast.bench.run import Plan, run_plan

CASE = "hmc_net_resnet18@64x2"
PEERS = ("eager", "tensorrt", "tensorrt_rtx")

without_gpu = pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")


@pytest.fixture(scope="module")
def record(tmp_path_factory: pytest.TempPathFactory) -> Record:
    plan = Plan("model", (parse_case(CASE),), ("fp32", "bf16"), PEERS, seconds=0.02)
    folder = tmp_path_factory.mktemp("engines")
    run_plan(plan, folder)
    return read_record(folder / "record.jsonl")


def row_of(record: Record, name: str, precision: str) -> Measurement:
    (row,) = (r for r in record.measurements if (r.peer, r.precision) == (name, precision))
    return row


@pytest.mark.systems
@without_gpu
@pytest.mark.parametrize(
    ("precision", "form", "fused"), [("bf16", "equal-widths", 4), ("fp32", "blocks", 0)]
)
def test_an_engine_that_cannot_run_tells_of_its_build(
    record: Record, precision: str, form: str, fused: int
) -> None:
    row = row_of(record, "tensorrt_rtx", precision)
    assert (row.status, row.p50_ms, row.peak_mib) == ("built", None, None)
    engine = row.engine
    assert engine is not None
    assert (engine.batch, engine.attentions) == (2, 4)
    assert (engine.attention, engine.fused_attentions) == (form, fused)
    assert {"sm_86", "sm_89", "sm_120"} <= set(engine.targets)
    assert engine.engine_bytes > 2**24
    assert engine.activation_bytes is not None
    assert 2**20 < engine.activation_bytes < 2**28
    assert f"{fused} of 4 attentions fused" in (row.reason or "")
    shown = {(status, reason) for _, status, reason in reasons(record)}
    assert ("built", row.reason) in shown
    assert row_of(record, "eager", precision).status == "ok"


@without_gpu
def test_what_is_neither_built_nor_run_says_why() -> None:
    case, cpu = parse_case(CASE), torch.device("cpu")
    reason = peer("tensorrt").why_not(case, torch.bfloat16, cpu)
    assert reason is not None
    assert "pip install 'hmc-fast[tensorrt]'" in reason or "builds on the GPU" in reason
    training = replace(case, tasks=("training",))
    for name in ("tensorrt", "tensorrt_rtx"):
        assert peer(name).why_not(training, torch.bfloat16, cpu) == "an engine infers only"
    assert peer("tensorrt_rtx").why_not(case, torch.bfloat16, cpu) is None


@pytest.mark.gpu
def test_an_engine_runs_within_the_budget_where_its_builder_knows_the_gpu(tmp_path: Path) -> None:
    device = torch.device("cuda")
    names = [
        n for n in PEERS[1:] if peer(n).why_not(parse_case(CASE), torch.float16, device) is None
    ]
    if not names:
        pytest.skip("no installed builder builds for this GPU")
    plan = Plan("model", (parse_case(CASE),), ("fp16",), ("eager", *names), seconds=0.02)
    rows = {row.peer: row.status for row in run_plan(plan, tmp_path).measurements}
    assert rows == dict.fromkeys(("eager", *names), "ok")
