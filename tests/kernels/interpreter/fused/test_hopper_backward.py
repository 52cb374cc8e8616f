"""Hopper's specialised kernels together, within the error budget: forward and every gradient.

In the interpreter a loop is not divided among warps: what is seen is the arithmetic, the masks and
the tiles that descriptors fetch.
"""

from collections.abc import Callable, Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from hmc_fast.kernels import attention
from hmc_fast.kernels.fused.architectures import PLANS
from hmc_fast.kernels.fused.launch import Launch
from hmc_fast.kernels.fused.tiles import INTERPRETER, Tile, TileEntry, load_tiles, use_tiles
from hmc_fast.kernels.problem import AttentionProblem
from hmc_fast.kernels.testing import DrawnProblem, assert_parity, draw_problems

BLOCKS = {
    "specialised_forward": {"BLOCK_M": 32, "BLOCK_N": 32},
    "specialised_backward_kv": {"BLOCK_M": 16, "BLOCK_N": 32},
}
WIDTHS = ((64, 256), (32, 64), (16, 128), (64, 16))
KINDS = ("normal", "strided", "large logits", "constant keys")


def fitting_problems() -> list[DrawnProblem]:
    """Drawn problems of one source with the head dims and the tokens of the specialised kernels."""
    problems = []
    for problem in draw_problems(seed=17, count=240):
        shape, (d_qk, d_v) = problem.shape, WIDTHS[len(problems) % len(WIDTHS)]
        counts = (shape.queries, shape.tokens[0])
        if problem.kind in KINDS and all(32 <= count <= 200 for count in counts):
            one = {"batch": 1, "heads": 5, "tokens": shape.tokens[:1]}
            fitting = replace(shape, **one, qk_head_dim=d_qk, v_head_dims=(d_v,))
            problems.append(replace(problem, shape=fitting))
    return problems


PROBLEMS = fitting_problems()


@pytest.fixture(autouse=True)
def launched(monkeypatch: pytest.MonkeyPatch) -> Iterator[set[str]]:
    """The names of kernels that ran, with Hopper's plans in the interpreter."""
    for plans in PLANS.values():
        if "sm_90" in plans:
            monkeypatch.setitem(plans, INTERPRETER, plans["sm_90"])
    names: set[str] = set()
    run = Launch.run

    def recorded(launch: Launch) -> None:
        names.add(launch.name)
        run(launch)

    monkeypatch.setattr(Launch, "run", recorded)
    shipped = load_tiles(INTERPRETER)
    entries = {
        name: [TileEntry(16, 64, 256, None, (Tile(blocks, 4, 3),))]
        for name, blocks in BLOCKS.items()
    }
    with use_tiles(replace(shipped, entries={**shipped.entries, **entries})):
        yield names


def test_the_draw_has_every_kind_and_ragged_blocks() -> None:
    assert {p.kind for p in PROBLEMS} == set(KINDS)
    assert {(p.shape.qk_head_dim, *p.shape.v_head_dims) for p in PROBLEMS} == set(WIDTHS)
    assert {p.shape.tokens[0] % 32 == 0 for p in PROBLEMS} == {True, False}
    assert {p.shape.queries % 16 == 0 for p in PROBLEMS} == {True, False}


@pytest.mark.parametrize("problem", PROBLEMS, ids=str)
def test_drawn_problems(problem: DrawnProblem, launched: set[str]) -> None:
    q, ks, vs = problem.tensors(torch.float16)
    assert_parity(q, ks, vs, scale=problem.shape.scale, backend="triton")
    assert launched == {*BLOCKS, "delta", "attention_backward_q"}


@pytest.mark.parametrize("scale", [0.0, -0.3])
def test_any_scale(scale: float, launched: set[str]) -> None:
    q, ks, vs = PROBLEMS[0].tensors(torch.float16)
    assert_parity(q, ks, vs, scale=scale, backend="triton")
    assert launched >= set(BLOCKS)


def test_several_sources_take_a_launch_each(launched: set[str]) -> None:
    shape = AttentionProblem(1, 70, 5, (64, 45), (128, 64), 32, torch.float32)
    q, ks, vs = DrawnProblem(5, "normal", shape).tensors(torch.float16)
    assert_parity(q, ks, vs, backend="triton")
    forward = {"attention_forward"}
    assert launched == {*forward, "delta", "attention_backward_q", "specialised_backward_kv"}


Q, K, V = (x[0] if isinstance(x, list) else x for x in PROBLEMS[0].tensors(torch.float16))


def shifted(x: Tensor) -> Tensor:
    """The same numbers one element off the alignment that descriptors need."""
    return torch.cat([x.new_zeros(1), x.flatten()])[1:].view_as(x)


OTHERS = {
    "unaligned key": (Q, [shifted(K)], [V]),
    "one unaligned source": (Q, [K, shifted(K)], [V, V]),
    "few keys": (Q, [K[:, :31]], [V[:, :31]]),
    "fp32": (Q.float(), [K.float()], [V.float()]),
}


@pytest.mark.parametrize("name", list(OTHERS))
def test_what_does_not_fit_goes_to_the_pointer_kernel(name: str, launched: set[str]) -> None:
    assert_parity(*OTHERS[name], backend="triton")
    assert "specialised_backward_kv" not in launched
    assert "attention_backward_kv" in launched


@pytest.mark.parametrize("order", ["shuffled", "backwards"])
def test_the_order_of_programs_changes_no_bit(
    order: str, launched: set[str], run_in_order: Callable[[str], Callable[[], int]]
) -> None:
    def everything() -> list[Tensor]:
        q, (k,), (v,) = PROBLEMS[0].tensors(torch.float16)
        leaves = [x.requires_grad_() for x in (q, k, v)]
        out, lse = attention(*leaves, backend="triton")
        total = out.float().square().sum() + lse.sum()
        return [out, lse, *torch.autograd.grad(total, leaves)]

    expected = everything()
    moved = run_in_order(order)
    for actual, e in zip(everything(), expected, strict=True):
        assert torch.equal(actual, e)
    assert moved() > 20
    assert launched >= set(BLOCKS)
