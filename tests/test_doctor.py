"""What this machine can run."""

import pytest
import torch

from hmc_fast.doctor import Check, examine
from hmc_fast.kernels.cpu.compiled import attention as compiled


def backend_check() -> Check:
    (check,) = (check for check in examine() if check.what == "attention's backend")
    return check


def test_the_backend_of_calls_that_name_none_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("HMC_FAST_BACKEND", raising=False)
    assert backend_check().available
    monkeypatch.setenv("HMC_FAST_BACKEND", "reference")
    assert backend_check().detail == "reference (chosen by HMC_FAST_BACKEND)"


def test_a_backend_that_does_not_exist_is_found(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HMC_FAST_BACKEND", "fast")
    check = backend_check()
    assert not check.available
    assert "HMC_FAST_BACKEND is 'fast'; it must be one of" in check.detail
    assert check.remedy == "correct HMC_FAST_BACKEND, or unset it"


@pytest.mark.parametrize(
    ("reasons", "available", "detail"),
    [
        ((None, None), True, "float32, bfloat16"),
        ((None, "no"), True, "float32; not bfloat16: no"),
        (("no", "none"), False, "not float32: no; not bfloat16: none"),
    ],
)
def test_which_inputs_the_compiled_attention_takes_is_told(
    reasons: tuple[str | None, str | None],
    available: bool,
    detail: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    told = dict(zip((torch.float32, torch.bfloat16), reasons, strict=True))
    monkeypatch.setattr(compiled, "why_not", told.__getitem__)
    (check,) = (check for check in examine() if check.what == "compiled CPU attention")
    assert (check.available, check.detail) == (available, detail)
    assert (check.remedy is None) == available
