"""``bench model`` from the inside: lifelike parameters, truth, rows for what cannot run."""

import copy
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hmc_fast import UserError
from hmc_fast.bench.cases import parse_case
from hmc_fast.bench.measuring.clock import WallClock
from hmc_fast.bench.parity import LogitTruth, TrainingStep, TrainingTruth, module_bytes
from hmc_fast.bench.peers import choose_peers, peer
from hmc_fast.bench.peers.compiled import reference_attend
from hmc_fast.bench.peers.layouts import attend_sources
from hmc_fast.bench.peers.peer import ModuleVariant, Peer
from hmc_fast.bench.record import Measurement
from hmc_fast.bench.run import CaseRun, run_cases
from hmc_fast.bench.trials import ModelTrials, lifelike_model
from hmc_fast.models import FilmModel, HMCNet, attention_blocks

CPU = torch.device("cpu")
MODEL = "hmc_net_resnet18"


@pytest.fixture(scope="module")
def parameters() -> HMCNet:
    model = lifelike_model(MODEL, 64)
    assert isinstance(model, HMCNet)
    return model


def logit_truth(parameters: FilmModel, images: Tensor) -> LogitTruth:
    return LogitTruth(copy.deepcopy(parameters).double(), parameters, images)


def measure(
    *names: str, peers: tuple[Peer, ...] = choose_peers(("triton", "eager"), "model", CPU)
) -> list[Measurement]:
    runs = []
    for case in map(parse_case, names):
        trials = partial(ModelTrials, case, torch.float32, CPU)
        make = partial(_without_name, trials)
        runs.append(CaseRun(case, ("fp32",), peers, make, CPU, WallClock(), 0.02))
    return [row for rows in run_cases(iter(runs), float("inf")) for row in rows]


def _without_name(trials: Callable[[], ModelTrials], precision: str) -> ModelTrials:
    assert precision == "fp32"
    return trials()


def test_the_attention_decides_the_logits(parameters: HMCNet) -> None:
    images = torch.randn(2, 3, 64, 64)
    closed = copy.deepcopy(parameters)
    with torch.no_grad():
        for block in attention_blocks(closed):
            block.gamma.zero_()
        assert (parameters(images) - closed(images)).abs().max() > 0.01
        assert parameters(images).abs().max() < 100


@pytest.mark.parametrize(
    "attend",
    [
        reference_attend,
        attend_sources(
            lambda q, k, v, scale: torch.nn.functional.scaled_dot_product_attention(
                q, k, v, scale=scale
            ),
            equal_head_dims=True,
        ),
    ],
    ids=["reference", "sdpa"],
)
def test_models_with_other_attention_are_right(parameters: HMCNet, attend: Any) -> None:
    truth = logit_truth(parameters, torch.randn(3, 3, 64, 64))
    other = copy.deepcopy(parameters)
    for block in attention_blocks(other):
        block.attend = attend
    assert truth.check(other, 3).within
    other.train()
    batch = (torch.randn(2, 3, 64, 64), torch.tensor([0, 1]))
    step = TrainingStep(other, other, torch.float32)
    assert TrainingTruth(parameters, batch, torch.float32).check(step).within


def test_wrong_logits_and_gradients_fail(parameters: HMCNet) -> None:
    torch.manual_seed(0)
    truth = logit_truth(parameters, torch.randn(2, 3, 64, 64))
    assert not truth.check(lambda images: parameters(images) + 1e-3, 2).within
    model = copy.deepcopy(parameters).train()
    step = TrainingStep(model, lambda images: 1.25 * model(images), torch.float32)
    batch = (torch.randn(2, 3, 64, 64), torch.tensor([0, 1]))
    assert not TrainingTruth(parameters, batch, torch.float32).check(step).within


def test_inference_and_training_step_are_measured() -> None:
    rows = measure(f"{MODEL}@64x2", f"{MODEL}@64x2/training", "resnet18@64x1")
    eager = [row for row in rows if row.peer == "eager"]
    assert [row.status for row in eager] == ["ok"] * 3
    assert [row.task for row in eager] == ["inference", "training", "inference"]
    for row in eager:
        assert row.throughput_per_s == pytest.approx(
            int(row.case.rsplit("x", 1)[1]) / row.p50_ms * 1e3
        )
        assert row.budget_units <= 1
    inference, training, plain = (row.peak_mib for row in eager)
    held_mib = module_bytes(lifelike_model(MODEL, 64)) / 2**20
    assert inference >= held_mib
    assert training >= 3 * held_mib  # AdamW keeps two moments of every parameter
    assert plain < inference
    reasons = [row.reason for row in rows if row.peer == "triton"]
    assert "GPU" in reasons[0]
    assert reasons[2] == "the model has no attention"


def test_the_step_changes_parameters_and_counts_its_state(parameters: HMCNet) -> None:
    model = copy.deepcopy(parameters).train()
    step = TrainingStep(model, model, torch.bfloat16)
    before = model.fc.weight.detach().clone()
    step((torch.randn(2, 3, 64, 64), torch.tensor([0, 1])))
    assert not torch.equal(model.fc.weight, before)
    assert model.fc.weight.dtype == torch.float32
    trainable = sum(p.numel() * p.element_size() for p in model.parameters())
    assert step.held_bytes() >= module_bytes(model) + 2 * trainable


def test_one_that_breaks_is_a_row() -> None:
    def build(model: nn.Module, images: Tensor) -> Callable[[Tensor], Tensor]:
        raise torch.OutOfMemoryError("no memory left")

    variant = ModuleVariant("breaks", build=build)
    broken = Peer("triton", "ours", "#000000", "breaks", models=(variant,))
    rows = {row.peer: row for row in measure(f"{MODEL}@32x1", peers=(broken, peer("eager")))}
    assert rows["triton"].status == "error"
    assert "out of memory" in (rows["triton"].reason or "")
    assert rows["eager"].status == "ok"


def test_onnx_runtime_agrees() -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    peers = (peer("onnxruntime"),)
    (row,) = measure(f"{MODEL}@64x1", peers=peers)
    assert row.status == "ok", row.reason
    (training,) = measure(f"{MODEL}@64x2/training", peers=peers)
    assert training.reason == "ONNX Runtime infers only"


def test_unknown_peers_are_explained() -> None:
    with pytest.raises(UserError, match="unknown peer"):
        peer("jax")


def test_the_prepared_model_infers_alone_and_is_within_the_budget() -> None:
    prepared = choose_peers(("cpu_prepared",), "model", CPU)
    for name in ("hmc_net_resnet18@64x2", "resnet18@64x2"):
        (row,) = measure(name, peers=prepared)
        assert (row.status, row.variant) == ("ok", "batch norms folded"), row.reason
        assert row.budget_units is not None
        assert row.budget_units <= 1
        assert row.peak_mib is not None
    (row,) = measure("hmc_net_resnet18@64x2/training", peers=prepared)
    assert (row.status, row.reason) == ("unavailable", "a prepared model infers only")


def test_runtimes_have_no_peak_memory_in_the_shared_process() -> None:
    """They keep their arenas between calls, so what one call adds would be far too little."""
    like_a_runtime = replace(peer("eager"), family="runtime")
    (row,) = measure("hmc_net_resnet18@64x1", peers=(like_a_runtime,))
    assert row.status == "ok"
    assert row.peak_mib is None
