"""The warp-specialised forward within the error budget, and who takes which problem.

Interpreted, its loop is an ordinary one; descriptors, masks and the plan are the real ones.
"""

import random
from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from hmc_fast.kernels import attention, multi_scale_attention
from hmc_fast.kernels.fused import hopper_forward, operators
from hmc_fast.kernels.fused.architectures import PLANS
from hmc_fast.kernels.fused.hopper_forward import KERNEL, plan_hopper_attention_forward
from hmc_fast.kernels.fused.launch import Launch
from hmc_fast.kernels.fused.tiles import INTERPRETER, Tile, TileEntry, load_tiles, use_tiles
from hmc_fast.kernels.problem import AttentionProblem
from hmc_fast.kernels.testing import DrawnProblem, assert_parity

TILE = Tile({"BLOCK_M": 32, "BLOCK_N": 16}, num_warps=4, num_stages=1)
KINDS = ("normal", "strided", "large logits", "constant keys", "one key")


@pytest.fixture(autouse=True)
def launched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The names of all launches, planned as on Hopper with a tile for the interpreter."""
    monkeypatch.setitem(PLANS["attention_forward"], INTERPRETER, plan_hopper_attention_forward)
    monkeypatch.setattr(operators, "INTERPRETER_MULTIPROCESSORS", 1)
    tiles = load_tiles(INTERPRETER)
    entries = {**tiles.entries, KERNEL: [TileEntry(16, 64, 256, None, (TILE,))]}
    names: list[str] = []
    run = Launch.run

    def record(launch: Launch) -> None:
        names.append(launch.name)
        run(launch)

    monkeypatch.setattr(Launch, "run", record)
    with use_tiles(replace(tiles, entries=entries)):
        yield names


def problem(kind: str, seed: int, sources: int = 1) -> DrawnProblem:
    """With heads whose widths are powers of two, ragged in queries and keys."""
    rng = random.Random(seed)
    lengths = (1,) if kind == "one key" else (16, 31, 48, 97, 131)
    shape = AttentionProblem(
        rng.choice((1, 2)),
        rng.choice((32, 33, 64, 79)),
        rng.choice((1, 3)),
        tuple(rng.choice(lengths) for _ in range(sources)),
        tuple(rng.choice((16, 64, 128, 256)) for _ in range(sources)),
        rng.choice((16, 32, 64)),
        torch.float32,
    )
    return DrawnProblem(seed, kind, shape)


@pytest.mark.parametrize("drawn", [problem(KINDS[i % 5], i) for i in range(20)], ids=str)
def test_drawn_problems(drawn: DrawnProblem, launched: list[str]) -> None:
    q, ks, vs = drawn.tensors(torch.float16)
    assert_parity(q, ks, vs, scale=drawn.shape.scale, backend="triton")
    assert set(launched) >= {KERNEL, "attention_backward_q"}
    assert "attention_forward" not in launched


@pytest.fixture
def worth_a_join(monkeypatch: pytest.MonkeyPatch) -> None:
    """Any number of keys is worth a join."""
    monkeypatch.setattr(hopper_forward, "KEYS_WORTH_A_JOIN", 1)


SEVERAL = [problem(KINDS[i % 5], 100 + i, 2 + i % 3) for i in range(15)]


@pytest.mark.usefixtures("worth_a_join")
@pytest.mark.parametrize("drawn", SEVERAL, ids=str)
def test_several_sources_are_joined(drawn: DrawnProblem, launched: list[str]) -> None:
    q, ks, vs = drawn.tensors(torch.float16)
    assert_parity(q, ks, vs, scale=drawn.shape.scale, backend="triton")
    assert launched[: len(ks) + 1] == [KERNEL] * len(ks) + ["join_sources"]


@pytest.mark.parametrize("scale", [0.0, -0.3])
def test_any_scale(scale: float, launched: list[str]) -> None:
    q, ks, vs = problem("normal", 3).tensors(torch.float16)
    assert_parity(q, ks, vs, scale=scale, backend="triton")
    assert KERNEL in launched


def drawn(*shape: int, dtype: torch.dtype = torch.float16) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)


def shifted(x: Tensor) -> Tensor:
    """The same numbers one element off the alignment that descriptors need."""
    return torch.cat([x.new_zeros(1), x.flatten()])[1:].view_as(x)


Q, K, V = drawn(1, 40, 2, 32), drawn(1, 50, 2, 32), drawn(1, 50, 2, 64)
OTHERS = {
    "unaligned query": (shifted(Q), [K], [V]),
    "unaligned key": (Q, [shifted(K)], [V]),
    "unaligned value": (Q, [K], [shifted(V)]),
    "rows at odd steps": (Q, [drawn(1, 50, 2, 33)[..., :32]], [V]),
    "few queries": (Q[:, :31], [K], [V]),
    "a width that is no power of two": (Q, [K], [drawn(1, 50, 2, 48)]),
    "a width without a tile": (drawn(1, 40, 2, 128), [drawn(1, 50, 2, 128)], [V]),
    "two sources": (Q, [K, K], [V, V]),
    "rows that overlap": (Q, [K[:, :1].expand(-1, 50, -1, -1)], [V]),
    "fp32": (Q.float(), [K.float()], [V.float()]),
}


@pytest.mark.parametrize("name", list(OTHERS))
def test_what_does_not_fit_goes_to_the_pointer_kernel(name: str, launched: list[str]) -> None:
    q, ks, vs = OTHERS[name]
    assert_parity(q, ks, vs, backend="triton")
    assert "attention_forward" in launched
    assert KERNEL not in launched


@pytest.mark.usefixtures("worth_a_join")
@pytest.mark.parametrize("odd", ["unaligned", "few queries", "more multiprocessors"])
def test_sources_that_do_not_fit_share_a_launch_of_the_pointer_kernel(
    odd: str, launched: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    if odd == "more multiprocessors":  # than blocks of queries: four
        monkeypatch.setattr(operators, "INTERPRETER_MULTIPROCESSORS", 5)
    k, v = K[:, :32], V[:, :32]  # one block, which is not split
    q = Q[:, :31] if odd == "few queries" else Q
    multi_scale_attention(q, [k, shifted(k) if odd == "unaligned" else k], [v, v], backend="triton")
    assert launched == ["attention_forward"]


def test_a_grid_that_would_not_fill_the_gpu_is_split(
    launched: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(operators, "INTERPRETER_MULTIPROCESSORS", 64)
    attention(Q, K, V, backend="triton")
    assert launched == ["attention_forward", "combine_splits"]


def test_both_kernels_say_the_same(launched: list[str]) -> None:
    out, lse = attention(Q, K, V, backend="triton")
    other, other_lse = attention(Q, shifted(K), V, backend="triton")
    assert launched == [KERNEL, "attention_forward"]
    torch.testing.assert_close(out, other, atol=2e-3, rtol=2e-3)
    torch.testing.assert_close(lse, other_lse, atol=1e-5, rtol=1e-5)
