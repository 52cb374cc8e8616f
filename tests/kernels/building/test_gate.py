"""Every shipped tile builds for its architecture, fits, and (by default) does not spill."""

import json
import os
from dataclasses import replace
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hmc_fast import UserError
from hmc_fast.cli.app import run
from hmc_fast.kernels.building import gate
from hmc_fast.kernels.building.builds import (
    MATRIX_KERNELS,
    Build,
    ModelBuild,
    TileBuild,
    builds_for,
)
from hmc_fast.kernels.capability import MAX_SOURCES
from hmc_fast.kernels.fused.launch import padded, value_block
from hmc_fast.kernels.fused.tiles import INTERPRETER, Tile, load_tiles

pytestmark = pytest.mark.compile_only


def sampled(builds: list[Build]) -> list[Build]:
    """Each kernel once in bf16, on Hopper in every dtype, and the model's launches there."""
    first = {
        (b.architecture, b.kernel, b.dtype): b
        for b in reversed(builds)
        if b.dtype == torch.bfloat16 or b.architecture == "sm_90"
    }
    launched = [b for b in builds if b.architecture == "sm_90" and isinstance(b, ModelBuild)]
    return list(dict.fromkeys([*first.values(), *launched]))


@pytest.mark.systems
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    "whole", [False, pytest.param(True, marks=pytest.mark.exhaustive)], ids=["samples", "whole"]
)
def test_every_shipped_tile_passes_the_gate(whole: bool) -> None:
    builds = [build for name in gate.ARCHITECTURES for build in builds_for(name)]
    tiles = gate.check_builds(builds if whole else sampled(builds))
    failing = [(t.architecture, *t.cells()) for t in tiles if t.faults]
    assert not failing
    assert {t.architecture for t in tiles} == set(gate.ARCHITECTURES)
    hopper = [
        t
        for t in tiles
        if t.architecture == "sm_90" and t.problem.startswith("bf16") and "@" in t.problem
    ]
    matrix = [t for t in hopper if t.kernel in MATRIX_KERNELS]
    assert {t.kernel for t in matrix} >= set(MATRIX_KERNELS[:3])
    assert {t.mma for t in matrix} == {"wgmma"}  # in every launch of the model


def test_the_gate_can_fail() -> None:
    """A tile far too large for its architecture is named with what it lacks."""
    build = next(b for b in builds_for("sm_86") if b.kernel == "attention_forward")
    assert isinstance(build, TileBuild)
    huge = Tile({"BLOCK_M": 128, "BLOCK_N": 128}, num_warps=4, num_stages=4)
    found = gate.compile_build(replace(build, tile=huge))
    assert any("shared memory" in fault or "spills" in fault for fault in found.faults)


def test_a_process_that_dies_while_it_compiles_is_one_line() -> None:
    dies: Any = SimpleNamespace(launch=partial(os._exit, 9))
    with pytest.raises(UserError, match="a process that compiles kernels was killed after 0 of 1"):
        gate.check_builds([dies])


def test_the_command_builds_the_kernels_that_are_named(capsys: pytest.CaptureFixture[str]) -> None:
    line = ["kernels", "resources", "--target", "sm_86", "--kernel"]
    assert run([*line, "delta", "--json"]) == 0
    tiles = json.loads(capsys.readouterr().out)
    assert {(t["architecture"], t["kernel"]) for t in tiles} == {("sm_86", "delta")}
    assert run([*line, "source_join"]) == 1
    assert "no kernel 'source_join' there; use one of attention_forward" in capsys.readouterr().err
    assert run(["kernels", "resources", "--target", "sm_86", "--target", "sm_87"]) == 1
    assert "unknown architecture 'sm_87'; use one of sm_80" in capsys.readouterr().err


@given(
    architecture=st.sampled_from([*gate.ARCHITECTURES, INTERPRETER]),
    bits=st.sampled_from([16, 32]),
    d_qk=st.integers(16, 256),
    d_vs=st.lists(st.integers(16, 2048), min_size=1, max_size=MAX_SOURCES),
    queries=st.integers(1, 100_000),
)
def test_a_tile_serves_every_problem_in_the_capability_table(
    architecture: str, bits: int, d_qk: int, d_vs: list[int], queries: int
) -> None:
    tiles = load_tiles(architecture)
    columns = tiles.value_columns[bits]
    limit = columns.chunk
    while sum(value_block(d, limit) for d in d_vs) > columns.accumulated:
        limit //= 2
    blocks = [value_block(d, limit) for d in d_vs]
    assert min(blocks) >= 16
    assert tiles.choose("attention_forward", bits, d_qk, sum(blocks), queries)
    width = max(value_block(d, columns.chunk) for d in d_vs)
    for kernel in ("delta", "attention_backward_q", "attention_backward_kv"):
        assert tiles.choose(kernel, bits, d_qk, width, queries)
    if max(map(padded, d_vs)) > columns.chunk:
        assert tiles.choose("attention_backward_k", bits, d_qk, width, queries)
    assert tiles.choose("combine_splits", bits, d_qk, max(blocks), queries)
    assert tiles.choose("gated_projection", bits, 0, 0, queries)
