"""A precision that is slower on this processor is told."""

import pytest
import torch

from hmc_fast.inference import precision, slower_precision


def test_a_precision_that_is_slower_here_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    cpu, rates = torch.device("cpu"), {torch.float32: 0.32, torch.bfloat16: 0.17}
    assert precision._tflops(torch.float32) > 0
    monkeypatch.setattr(precision, "_tflops", rates.__getitem__)
    assert slower_precision("bf16", cpu) == (
        "matrix products run at 0.17 TFLOP/s in bf16 on this processor, at 0.32 in fp32: "
        "--precision fp32 is faster"
    )
    assert slower_precision("fp32", cpu) is None
    assert slower_precision("bf16", torch.device("cuda")) is None
    rates[torch.bfloat16] = 0.9
    assert slower_precision("bf16", cpu) is None
