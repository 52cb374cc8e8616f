"""What this machine can run."""

import pytest

from hmc_fast.doctor import Check, examine


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
