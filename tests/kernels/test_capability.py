"""The table of limits answers with every reason."""

import pytest
import torch

from hmc_fast.kernels import CAPABILITIES, ProjectionProblem, capability, why_not
from hmc_fast.kernels.capability import reasons_against


def test_why_not_lists_every_limit_hit() -> None:
    q = torch.randn(1, 2, 1, 8, dtype=torch.float64)
    v = torch.randn(1, 2, 1, 4096, dtype=torch.float64)
    reasons = why_not(q, q, v)
    for part in ("head dim of q and k is 8", "head dim of v is 4096", "float64", "cpu"):
        assert any(part in reason for reason in reasons)
    assert why_not(q, q, v, backend="reference") == []
    assert {limit.backend for limit in CAPABILITIES} == {"reference", "triton"}


def test_an_interpreter_that_a_newer_numpy_breaks_is_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    q = torch.randn(1, 3, 1, 16)
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    monkeypatch.setattr(capability, "TRITON_RELEASE", (3, 6))
    monkeypatch.setattr(capability, "NUMPY_RELEASE", (2, 4))
    assert why_not(q, q, q) == [
        "the installed numpy under Triton's interpreter is 2.4; triton needs numpy before 2.4 or "
        "triton 3.7 and newer"
    ]
    monkeypatch.setattr(capability, "NUMPY_RELEASE", (2, 3))
    assert why_not(q, q, q) == []


def test_a_projection_has_no_head_dims_to_be_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    problem = ProjectionProblem(2, torch.float32, torch.device("cpu"))
    assert reasons_against(problem, "triton") == []
    many = ProjectionProblem(9, torch.float32, torch.device("cpu"))
    assert reasons_against(many, "triton") == ["number of sources is 9; triton needs 1 to 8"]
