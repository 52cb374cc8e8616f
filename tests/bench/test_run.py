"""``bench kernels`` from the inside: parity first, every failure a row, the rest goes on."""

import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hmc_fast import UserError
from hmc_fast.bench import run as runner
from hmc_fast.bench import trials
from hmc_fast.bench.cases import Case, Inputs, parse_case
from hmc_fast.bench.failures import describe, status_of
from hmc_fast.bench.measuring.ceilings import Ceiling
from hmc_fast.bench.measuring.clock import TimedCall, clock_for
from hmc_fast.bench.peers import peer
from hmc_fast.bench.peers.peer import BoundCall, Peer, Variant
from hmc_fast.bench.record import Measurement, read_record
from hmc_fast.bench.run import CaseRun, Plan, run_cases
from hmc_fast.bench.trials import trials_of
from hmc_fast.devices import precision_dtype

CEILINGS = {
    "fp32": Ceiling("fp32", 64, 0.05, 2**20, 10.0),
    "bf16": Ceiling("bf16", 64, 500.0, 2**20, 3000.0),
}
EAGER = peer("eager")
PLAN = Plan(
    "kernels",
    cases=(parse_case("hsa_c4@32x2"), parse_case("msca_c5@32x1")),
    precisions=("fp32",),
    peers=("triton", "sdpa_flash", "sdpa_math", "eager"),
    seconds=0.02,
)


def case_run(
    plan: Plan, case: Case, peers: tuple[Peer, ...] | None = None, device: str = "cpu"
) -> CaseRun:
    on = torch.device(device)
    return CaseRun(
        case,
        plan.precisions,
        peers or plan.peers_of(case.kind),
        lambda precision: trials_of(case, precision_dtype(precision), on),
        on,
        clock_for(on),
        plan.seconds,
        ceilings=CEILINGS,
    )


def measure(
    plan: Plan, deadline_s: float = float("inf"), peers: tuple[Peer, ...] | None = None
) -> list[Measurement]:
    runs = (case_run(plan, case, peers) for case in plan.cases)
    return [row for rows in run_cases(runs, deadline_s) for row in rows]


def wrapped(change: Callable[[list[Tensor]], list[Tensor]]) -> Peer:
    """The eager peer under the name of another, with changed outputs."""

    def bind(case: Case, inputs: Inputs) -> BoundCall:
        assert EAGER.operators is not None
        call = EAGER.operators(case)[0].bind(case, inputs)
        return replace(call, forward=lambda: change(call.forward()))

    return Peer(
        "sdpa_math",
        "attention",
        "#000000",
        "a changed one",
        operators=lambda case: [Variant("changed", bind)],
    )


def with_peer(changed: Peer) -> list[Measurement]:
    return measure(replace(PLAN, cases=PLAN.cases[:1]), peers=(changed, EAGER))


def test_every_peer_and_pass_has_a_row() -> None:
    rows = measure(PLAN)
    assert len(rows) == 2 * 3 * 4
    for row in rows:
        if row.peer == "triton":
            assert row.status == "unavailable"
            assert row.reason
            assert row.p50_ms is None
            continue
        assert row.status == "ok", row.reason
        assert row.p20_ms is not None
        assert row.p80_ms is not None
        assert 0 < row.p20_ms <= row.p50_ms <= row.p80_ms <= row.max_ms
        assert row.samples >= 10
        assert 0 <= row.budget_units <= 1
        assert row.flops > 0
        assert row.tflops == pytest.approx(row.flops / row.p50_ms / 1e9)
        assert row.ceiling_share == pytest.approx(row.floor_ms / row.p50_ms)
        assert row.speed_up > 0
        assert row.clocks


def test_a_wrong_result_gets_no_time() -> None:
    rows = with_peer(wrapped(lambda outs: [out * 1.001 for out in outs]))
    wrong = [row for row in rows if row.peer == "sdpa_math"]
    assert {row.status for row in wrong} == {"parity failed"}
    assert all(row.p50_ms is None and row.budget_units > 1 for row in wrong)
    assert {row.status for row in rows if row.peer == "eager"} == {"ok"}


def test_every_right_variant_is_timed_and_the_fastest_counts() -> None:
    def variant(name: str, change: Callable[[list[Tensor]], list[Tensor]]) -> Variant:
        def bind(case: Case, inputs: Inputs) -> BoundCall:
            assert EAGER.operators is not None
            call = EAGER.operators(case)[0].bind(case, inputs)
            return replace(call, forward=lambda: change(call.forward()))

        return Variant(name, bind)

    def slow(outs: list[Tensor]) -> list[Tensor]:
        time.sleep(0.02)
        return outs

    def refuse(outs: list[Tensor]) -> list[Tensor]:
        raise NotImplementedError("head dims must be equal")

    ways = [
        variant("slow", slow),
        variant("refused", refuse),
        variant("fast", list),
        variant("wrong", lambda outs: [out * 1.01 for out in outs]),
    ]
    several = Peer("sdpa_math", "attention", "#000000", "x", operators=lambda case: ways)
    forward = replace(PLAN, cases=(replace(PLAN.cases[0], tasks=("forward",)),))
    row, lone = measure(forward, peers=(several, EAGER))
    assert (row.status, row.variant, row.reason) == ("ok", "fast", None)
    assert row.tried is not None
    assert set(row.tried) == {"slow", "refused", "fast", "wrong"}
    assert row.tried["fast"] == row.p50_ms
    assert float(row.tried["slow"]) > 20
    assert "head dims must be equal" in str(row.tried["refused"])
    assert "outs[0]" in str(row.tried["wrong"])
    assert row.peak_mib is not None
    assert lone.tried is None


def test_running_out_of_memory_is_a_row() -> None:
    def exhausted(outs: list[Tensor]) -> list[Tensor]:
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 32.00 GiB")

    rows = with_peer(wrapped(exhausted))
    failed = [row for row in rows if row.peer == "sdpa_math"]
    assert {row.status for row in failed} == {"error"}
    assert all("out of memory" in (row.reason or "") for row in failed)
    assert {row.status for row in rows if row.peer == "eager"} == {"ok"}


def test_a_case_whose_truth_fails_is_rows_and_the_next_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    right = trials.truth_of

    def fails_first(case: Case, inputs: Inputs) -> Any:
        if case.name.startswith("hsa"):
            raise torch.OutOfMemoryError("no memory left")
        return right(case, inputs)

    monkeypatch.setattr(trials, "truth_of", fails_first)
    rows = measure(replace(PLAN, cases=tuple(replace(c, tasks=("forward",)) for c in PLAN.cases)))
    statuses = {(row.case, row.status) for row in rows if row.peer == "eager"}
    assert statuses == {("hsa_c4@32x2", "error"), ("msca_c5@32x1", "ok")}


def test_graphs_are_timed_for_fast_calls_and_failed_captures_say_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fake_capture(call: TimedCall, input_sets: int, device: torch.device) -> TimedCall:
        if call is calls["eager"]:
            raise RuntimeError("operation not permitted when stream is capturing")
        return call

    monkeypatch.setattr(runner, "capture", fake_capture)
    rows = [
        Measurement("hsa_c4@32x2", name, "fp32", "forward", "stream", "ok", p50_ms=ms)
        for name, ms in (("sdpa_math", 1.0), ("eager", 1.0), ("sdpa_flash", 1000.0))
    ]
    by_label = {row.label: TimedCall(lambda i: None) for row in rows}
    calls = {row.peer: by_label[row.label] for row in rows}
    made = case_run(PLAN, PLAN.cases[0])._graph_rows(rows, by_label, "forward", float("inf"))
    graphs = {row.peer: row for row in made}
    assert set(graphs) == {"sdpa_math", "eager"}
    assert {row.launch for row in graphs.values()} == {"graph"}
    assert graphs["sdpa_math"].p50_ms is not None
    assert "not permitted" in (graphs["eager"].reason or "")


def test_after_the_deadline_rows_say_so() -> None:
    rows = measure(PLAN, deadline_s=0.0)
    assert len(rows) == 2 * 3 * 4
    assert {row.status for row in rows} == {"skipped"}
    assert {row.reason for row in rows} == {"the time set for the whole run was over"}


@pytest.mark.parametrize(("deadline_s", "attempts"), [(float("inf"), 3), (0.0, 1)])
def test_what_was_timed_under_load_is_repeated_and_the_quietest_kept(
    monkeypatch: pytest.MonkeyPatch, deadline_s: float, attempts: int
) -> None:
    loads = iter([{"others_percent": percent} for percent in (60.0, 30.0, 90.0)])
    monkeypatch.setattr(runner, "load_between", lambda before, after: next(loads))
    run = case_run(PLAN, PLAN.cases[0])
    results, load = runner.sample_quietly(
        {"a": TimedCall(lambda state: None)}, run.device, run.clock, run.seconds, deadline_s
    )
    assert load == {"others_percent": 30.0 if attempts == 3 else 60.0, "attempts": attempts}
    assert set(results.timings) == {"a"}


def test_a_quiet_timing_is_taken_once(monkeypatch: pytest.MonkeyPatch) -> None:
    loads = iter([{"others_percent": 1.0, "steal_percent": 0.0}])
    monkeypatch.setattr(runner, "load_between", lambda before, after: next(loads))
    run = case_run(PLAN, PLAN.cases[0])
    _, load = runner.sample_quietly(
        {"a": TimedCall(lambda state: None)}, run.device, run.clock, run.seconds
    )
    assert load["attempts"] == 1


def test_each_case_is_held_against_ceilings_measured_beside_it(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    rates = iter([1.0, 2.0, 4.0])

    def rising(precision: str, *args: object, **options: object) -> Ceiling:
        rate = next(rates)
        return Ceiling(precision, 64, rate, 2**20, 1000 * rate)

    monkeypatch.setattr(runner, "measure_ceiling", rising)
    case = replace(PLAN.cases[0], tasks=("forward",))
    record = runner.run_plan(replace(PLAN, cases=(case, case), peers=("eager",)), tmp_path)
    first, second = record.measurements
    assert first.floor_ms is not None
    assert second.floor_ms is not None
    assert first.floor_ms == pytest.approx(2 * second.floor_ms)
    assert [ceiling.matmul_tflops for ceiling in record.ceilings] == [1.0]


def test_blocks_are_measured_whole() -> None:
    options = replace(PLAN, cases=(parse_case("hsa_block_c3@32"),), peers=("eager",))
    rows = measure(options)
    assert [(row.task, row.status) for row in rows] == [
        ("forward", "ok"),
        ("backward", "ok"),
        ("both", "ok"),
    ]


def test_compiled_peers_are_measured_or_say_why() -> None:
    case = replace(PLAN.cases[0], tasks=("forward",))
    for row in measure(replace(PLAN, cases=(case,), peers=("compiled",))):
        assert row.status == "ok" or "compiler" in (row.reason or "")


def test_unknown_names_are_explained() -> None:
    with pytest.raises(UserError, match="unknown peer"):
        replace(PLAN, peers=("cutlass",))
    with pytest.raises(UserError, match="peer 'openvino' does no case of kind operator"):
        replace(PLAN, cases=PLAN.cases[:1], peers=("eager", "openvino"))
    with pytest.raises(UserError, match="unknown precision"):
        replace(PLAN, precisions=("fp8",))


def test_reasons_are_one_line() -> None:
    refused = RuntimeError("No available kernel. Aborting execution.")
    assert status_of(refused) == "unavailable"
    wrapped_error = RuntimeError("LoweringException: NotImplementedError: no lse\n  target: x")
    assert (status_of(wrapped_error), describe(wrapped_error)) == ("unavailable", "no lse")
    broken = ValueError("shapes\n do   not fit")
    assert (status_of(broken), describe(broken)) == ("error", "ValueError: shapes do not fit")


@pytest.mark.gpu
def test_on_a_gpu_ours_is_measured_with_and_without_graphs() -> None:
    plan = replace(PLAN, precisions=("bf16",), peers=("triton", "sdpa_flash", "eager"))
    runs = (case_run(plan, case, device="cuda") for case in plan.cases)
    rows = [row for rows in run_cases(runs, float("inf")) for row in rows]
    ours = [row for row in rows if row.peer == "triton"]
    assert {row.status for row in ours} == {"ok"}, [row.reason for row in ours]
    assert {row.launch for row in ours} == {"stream", "graph"}
    assert all(row.p50_ms is not None and row.p50_ms > 0 for row in ours)


def test_a_second_run_keeps_the_first_record_and_says_so(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "measure_ceiling", lambda *_, **__: Ceiling("fp32", 1, 1.0, 1, 1.0))
    plan = replace(PLAN, peers=("eager",), minutes=0.0)
    stages: list[str] = []
    first = runner.run_plan(plan, tmp_path, on_stage=stages.append)
    assert not [stage for stage in stages if "kept" in stage]
    runner.run_plan(plan, tmp_path, on_stage=stages.append)
    (said,) = (stage for stage in stages if "kept" in stage)
    (kept,) = tmp_path.glob("record-*.jsonl")
    assert kept.name in said
    assert read_record(kept).created == first.created
    assert (tmp_path / "record.jsonl").is_file()
