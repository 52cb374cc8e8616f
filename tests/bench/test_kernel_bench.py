"""``bench kernels`` from the inside: parity first, every failure a row, the rest goes on."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from hmc_fast import UserError
from hmc_fast.bench import kernel_bench
from hmc_fast.bench.cases import Case, Inputs, parse_case
from hmc_fast.bench.ceilings import Ceiling
from hmc_fast.bench.failures import describe, status_of
from hmc_fast.bench.kernel_bench import KernelBenchOptions, run_kernel_bench
from hmc_fast.bench.peers import EAGER, BoundCall, Peer, Variant
from hmc_fast.bench.profile_record import Measurement
from hmc_fast.bench.timing import TimedCall, WallClock, clock_for

CEILINGS = {"fp32": Ceiling("fp32", 64, 0.05, 2**20, 10.0)}
OPTIONS = KernelBenchOptions(
    cases=(parse_case("hsa_c4@32x2"), parse_case("msca_c5@32x1")),
    precisions=("fp32",),
    peers=("triton", "sdpa_flash", "sdpa_math", "eager"),
    seconds=0.02,
)


def measure(options: KernelBenchOptions, **more: Any) -> list[Measurement]:
    rows: Iterator[list[Measurement]] = run_kernel_bench(
        options, CEILINGS, torch.device("cpu"), WallClock(), **more
    )
    return [row for case in rows for row in case]


def wrapped(change: Callable[[list[Tensor]], list[Tensor]]) -> Peer:
    """The eager peer under the name of another, with changed outputs."""

    def bind(case: Case, inputs: Inputs) -> BoundCall:
        call = EAGER.variants(case)[0].bind(case, inputs)
        return replace(call, forward=lambda: change(call.forward()))

    return Peer("sdpa_math", lambda case: [Variant("changed", bind)])


@pytest.fixture
def with_peer(monkeypatch: pytest.MonkeyPatch) -> Callable[[Peer], list[Measurement]]:
    def run(peer: Peer) -> list[Measurement]:
        monkeypatch.setattr(kernel_bench, "OPERATOR_PEERS", (peer, EAGER))
        return measure(replace(OPTIONS, cases=OPTIONS.cases[:1], peers=("sdpa_math", "eager")))

    return run


def test_every_peer_and_pass_has_a_row() -> None:
    rows = measure(OPTIONS)
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


def test_a_wrong_result_gets_no_time(with_peer: Callable[[Peer], list[Measurement]]) -> None:
    rows = with_peer(wrapped(lambda outs: [out * 1.001 for out in outs]))
    wrong = [row for row in rows if row.peer == "sdpa_math"]
    assert {row.status for row in wrong} == {"parity failed"}
    assert all(row.p50_ms is None and row.budget_units > 1 for row in wrong)
    assert {row.status for row in rows if row.peer == "eager"} == {"ok"}


def test_running_out_of_memory_is_a_row(with_peer: Callable[[Peer], list[Measurement]]) -> None:
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
    right = kernel_bench.truth_of

    def fails_first(case: Case, inputs: Inputs) -> Any:
        if case.name.startswith("hsa"):
            raise torch.OutOfMemoryError("no memory left")
        return right(case, inputs)

    monkeypatch.setattr(kernel_bench, "truth_of", fails_first)
    rows = measure(replace(OPTIONS, passes=("forward",)))
    statuses = {(row.case, row.status) for row in rows if row.peer == "eager"}
    assert statuses == {("hsa_c4@32x2", "error"), ("msca_c5@32x1", "ok")}


def test_graphs_are_timed_for_fast_calls_and_failed_captures_say_why(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def fake_capture(call: TimedCall, input_sets: int, device: torch.device) -> TimedCall:
        if call is calls["eager"]:
            raise RuntimeError("operation not permitted when stream is capturing")
        return call

    cpu = torch.device("cpu")
    bench = kernel_bench._CaseBench(
        OPTIONS, OPTIONS.cases[0], "fp32", CEILINGS["fp32"], cpu, WallClock(), lambda stage: None
    )
    monkeypatch.setattr(kernel_bench, "capture", fake_capture)
    peers = ("sdpa_math", "eager", "sdpa_flash")
    calls = {peer: TimedCall(lambda i: None) for peer in peers}
    rows = [
        Measurement("hsa_c4@32x2", peer, "fp32", "forward", "stream", "ok", p50_ms=ms)
        for peer, ms in zip(peers, (1.0, 1.0, 1000.0), strict=True)
    ]
    graphs = {row.peer: row for row in bench._graph_rows("forward", rows, calls)}
    assert set(graphs) == {"sdpa_math", "eager"}
    assert {row.launch for row in graphs.values()} == {"graph"}
    assert graphs["sdpa_math"].p50_ms is not None
    assert "not permitted" in (graphs["eager"].reason or "")


def test_after_the_deadline_rows_say_so() -> None:
    rows = measure(OPTIONS, deadline_s=0.0)
    assert len(rows) == 2 * 3 * 4
    assert {row.status for row in rows} == {"skipped"}
    assert {row.reason for row in rows} == {"the time set for the whole run was over"}


def test_blocks_are_measured_whole() -> None:
    options = replace(OPTIONS, cases=(parse_case("hsa_block_c3@32"),), peers=("eager",))
    rows = measure(options)
    assert [(row.what, row.status) for row in rows] == [
        ("forward", "ok"),
        ("backward", "ok"),
        ("both", "ok"),
    ]


def test_compiled_peers_are_measured_or_say_why() -> None:
    options = replace(OPTIONS, cases=OPTIONS.cases[:1], peers=("compiled",), passes=("forward",))
    for row in measure(options):
        assert row.status == "ok" or "compiler" in (row.reason or "")


def test_unknown_names_are_explained() -> None:
    with pytest.raises(UserError, match="unknown backend"):
        replace(OPTIONS, peers=("cutlass",))
    with pytest.raises(UserError, match="unknown precision"):
        replace(OPTIONS, precisions=("fp8",))


def test_reasons_are_one_line() -> None:
    refused = RuntimeError("No available kernel. Aborting execution.")
    assert status_of(refused) == "unavailable"
    wrapped_error = RuntimeError("LoweringException: NotImplementedError: no lse\n  target: x")
    assert (status_of(wrapped_error), describe(wrapped_error)) == ("unavailable", "no lse")
    broken = ValueError("shapes\n do   not fit")
    assert (status_of(broken), describe(broken)) == ("error", "ValueError: shapes do not fit")


@pytest.mark.gpu
def test_on_a_gpu_ours_is_measured_with_and_without_graphs() -> None:
    device = torch.device("cuda")
    options = replace(OPTIONS, precisions=("bf16",), peers=("triton", "sdpa_flash", "eager"))
    ceilings = {"bf16": Ceiling("bf16", 64, 500.0, 2**20, 3000.0)}
    cases = run_kernel_bench(options, ceilings, device, clock_for(device))
    rows = [row for case in cases for row in case]
    ours = [row for row in rows if row.peer == "triton"]
    assert {row.status for row in ours} == {"ok"}, [row.reason for row in ours]
    assert {row.launch for row in ours} == {"stream", "graph"}
    assert all(row.p50_ms is not None and row.p50_ms > 0 for row in ours)
