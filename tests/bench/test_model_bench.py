"""``bench model`` from the inside: lifelike parameters, truth, rows for what cannot run."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

from hmc_fast import UserError
from hmc_fast.bench import model_bench
from hmc_fast.bench.model_bench import ModelBenchOptions, run_model_bench
from hmc_fast.bench.model_cases import parse_model_case
from hmc_fast.bench.model_truth import InferenceTruth, TrainingTruth
from hmc_fast.bench.model_variants import (
    IMPLEMENTATIONS,
    Implementation,
    TrainingStep,
    copy_of,
    model_bytes,
    reference_model,
    with_attention,
)
from hmc_fast.bench.peers_block import reference_attend, token_attend
from hmc_fast.bench.profile_record import Measurement
from hmc_fast.bench.timing import WallClock
from hmc_fast.models import HMCNet

MODEL = "hmc_net_resnet18"


@pytest.fixture(scope="module")
def parameters() -> HMCNet:
    return reference_model(MODEL)


def measure(*cases: str, **options: Any) -> list[Measurement]:
    chosen = ModelBenchOptions(
        cases=tuple(parse_model_case(case) for case in cases),
        precision="fp32",
        seconds=0.02,
        **{"implementations": ("triton", "eager"), **options},
    )
    rows = run_model_bench(chosen, torch.device("cpu"), WallClock())
    return [row for case in rows for row in case]


def test_the_attention_decides_the_logits(parameters: HMCNet) -> None:
    images = torch.randn(2, 3, 64, 64)
    closed = copy_of(parameters, "reference")
    with torch.no_grad():
        for block in (*closed.hsa.values(), closed.msca):
            block.gamma.zero_()
        assert (parameters(images) - closed(images)).abs().max() > 0.01
        assert parameters(images).abs().max() < 100


@pytest.mark.parametrize(
    "attend",
    [
        reference_attend,
        token_attend(
            lambda q, k, v, scale: torch.nn.functional.scaled_dot_product_attention(
                q, k, v, scale=scale
            ),
            equal_head_dims=True,
        ),
    ],
    ids=["reference", "sdpa"],
)
def test_models_with_other_attention_are_right(parameters: HMCNet, attend: Any) -> None:
    truth = InferenceTruth(parameters, torch.randn(3, 3, 64, 64))
    other = with_attention(copy_of(parameters, "reference"), attend)
    assert truth.check(other).within
    step = TrainingStep(copy_of(parameters, "reference").train(), other.train(), torch.float32)
    batch = (torch.randn(2, 3, 64, 64), torch.tensor([0, 1]))
    step = TrainingStep(other, other, torch.float32)
    assert TrainingTruth(parameters, batch, torch.float32).check(step).within


def test_wrong_logits_and_gradients_fail(parameters: HMCNet) -> None:
    torch.manual_seed(0)
    truth = InferenceTruth(parameters, torch.randn(2, 3, 64, 64))
    assert not truth.check(lambda images: parameters(images) + 1e-3).within
    model = copy_of(parameters, "reference").train()
    step = TrainingStep(model, lambda images: 1.25 * model(images), torch.float32)
    batch = (torch.randn(2, 3, 64, 64), torch.tensor([0, 1]))
    assert not TrainingTruth(parameters, batch, torch.float32).check(step).within


def test_inference_and_training_step_are_measured() -> None:
    rows = measure(f"{MODEL}@64x2", f"{MODEL}@64x2/training", "resnet18@64x1")
    eager = [row for row in rows if row.peer == "eager"]
    assert [row.status for row in eager] == ["ok"] * 3
    assert [row.what for row in eager] == ["inference", "training", "inference"]
    for row in eager:
        assert row.throughput_per_s == pytest.approx(
            int(row.case.rsplit("x", 1)[1]) / row.p50_ms * 1e3
        )
        assert row.budget_units <= 1
    inference, training, plain = (row.peak_mib for row in eager)
    own_mib = model_bytes(reference_model(MODEL)) / 2**20
    assert inference >= own_mib
    assert training >= 3 * own_mib  # AdamW keeps two moments of every parameter
    assert plain < inference
    reasons = [row.reason for row in rows if row.peer == "triton"]
    assert "GPU" in reasons[0]
    assert reasons[2] == "the model has no attention"


def test_the_step_changes_parameters_and_counts_its_state(parameters: HMCNet) -> None:
    model = copy_of(parameters, "reference").train()
    step = TrainingStep(model, model, torch.bfloat16)
    before = model.fc.weight.detach().clone()
    step((torch.randn(2, 3, 64, 64), torch.tensor([0, 1])))
    assert not torch.equal(model.fc.weight, before)
    assert model.fc.weight.dtype == torch.float32
    trainable = sum(p.numel() * p.element_size() for p in model.parameters())
    assert step.own_bytes() >= model_bytes(model) + 2 * trainable


def test_one_that_breaks_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    def build(model: HMCNet, images: Tensor) -> Callable[[Tensor], Tensor]:
        raise torch.OutOfMemoryError("no memory left")

    broken = Implementation("triton", "breaks", "reference", build, lambda c, t, d: None)
    eager = next(i for i in IMPLEMENTATIONS if i.name == "eager")
    monkeypatch.setattr(model_bench, "IMPLEMENTATIONS", (broken, eager))
    rows = {row.peer: row for row in measure(f"{MODEL}@32x1")}
    assert rows["triton"].status == "error"
    assert "out of memory" in rows["triton"].reason
    assert rows["eager"].status == "ok"


def test_onnx_runtime_agrees() -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    (row,) = measure(f"{MODEL}@64x1", implementations=("onnxruntime",))
    assert row.status == "ok", row.reason
    (training,) = measure(f"{MODEL}@64x2/training", implementations=("onnxruntime",))
    assert training.reason == "ONNX Runtime infers only"


def test_unknown_implementations_are_explained() -> None:
    options = ModelBenchOptions((parse_model_case("resnet18@32x1"),), "fp32")
    with pytest.raises(UserError, match="unknown implementation"):
        replace(options, implementations=("jax",))
