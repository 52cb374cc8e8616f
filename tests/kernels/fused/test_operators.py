"""The precision of products follows PyTorch's switches, by whichever of them it was set."""

from collections.abc import Iterator

import pytest
import torch

from hmc_fast.kernels.fused.operators import input_precision


@pytest.fixture(autouse=True)
def _restored() -> Iterator[None]:
    before = torch.backends.fp32_precision, torch.backends.cuda.matmul.fp32_precision
    yield
    torch.backends.fp32_precision, torch.backends.cuda.matmul.fp32_precision = before


def test_fp32_is_exact_by_default() -> None:
    assert input_precision(torch.float32) == "ieee"


def test_tf32_of_all_backends() -> None:
    torch.backends.fp32_precision = "tf32"
    assert input_precision(torch.float32) == "tf32"
    torch.backends.cuda.matmul.fp32_precision = "ieee"
    assert input_precision(torch.float32) == "ieee"


def test_tf32_by_the_older_switch() -> None:
    torch.backends.cuda.matmul.allow_tf32 = True
    assert input_precision(torch.float32) == "tf32"
    torch.backends.cuda.matmul.allow_tf32 = False
    assert input_precision(torch.float32) == "ieee"


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_other_dtypes_have_no_choice(dtype: torch.dtype) -> None:
    torch.backends.fp32_precision = "tf32"
    assert input_precision(dtype) == "ieee"
