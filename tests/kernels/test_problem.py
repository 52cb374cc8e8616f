"""A problem and its tensors tell the same."""

from dataclasses import replace

import torch

from hmc_fast.kernels import AttentionProblem


def test_the_problem_of_its_tensors_is_itself() -> None:
    problem = AttentionProblem(2, 5, 3, (7, 11), (32, 8), 16, torch.float16)
    assert AttentionProblem.of(*problem.tensors()) == problem
    assert problem.sources == 2
    assert problem.scale == 0.25
    meta = replace(problem, device=torch.device("meta"))
    assert AttentionProblem.of(*meta.tensors()) == meta


def test_a_generator_repeats_the_draw() -> None:
    problem = AttentionProblem(1, 5, 2, (7,), (32,), 16)
    first, second = (problem.tensors(torch.Generator().manual_seed(3)) for _ in range(2))
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[2][0], second[2][0])
