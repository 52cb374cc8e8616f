"""Blocked attention on a CPU within the error budget of fp64, forward and every gradient."""

import pytest
import torch

from hmc_fast.kernels.testing import DrawnProblem, assert_parity, draw_problems

PROBLEMS = draw_problems(seed=7, count=66)
DTYPES = (torch.float32, torch.bfloat16, torch.float16)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_drawn_problems(problem: DrawnProblem, dtype: torch.dtype) -> None:
    q, ks, vs = problem.tensors(dtype)
    assert_parity(q, ks, vs, scale=problem.scale, backend="cpu")
