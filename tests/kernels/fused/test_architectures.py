"""A plan of one architecture is taken there and nowhere else."""

from dataclasses import replace
from itertools import chain
from typing import Any

import pytest

from hmc_fast.kernels.building import gate
from hmc_fast.kernels.building.builds import plan_passes
from hmc_fast.kernels.fused import architectures, operators
from hmc_fast.kernels.fused.architectures import DEFAULT, PLANS, plan_for
from hmc_fast.kernels.fused.backward import ROW_BLOCK
from hmc_fast.kernels.fused.launch import Launch, Target
from hmc_fast.kernels.fused.tiles import INTERPRETER, load_tiles
from hmc_fast.kernels.geometry import cross_attention_problem, self_attention_problem
from hmc_fast.kernels.problem import AttentionProblem

PROBLEM = self_attention_problem("c5", 224, batch=1)


def target(architecture: str) -> Target:
    return Target(load_tiles(architecture), 132, "ieee")


def kernels_of(architecture: str, problem: AttentionProblem) -> list[str]:
    """The names of a forward and a backward pass's launches."""
    return [launch.name for launch in chain(*plan_passes(target(architecture), problem))]


@pytest.mark.parametrize("operator", list(PLANS))
def test_a_registered_plan_is_taken_on_its_architecture_alone(
    operator: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    default = plan_for(operator, "sm_80")

    def special(*arguments: Any) -> list[Launch]:
        return default(*arguments)

    monkeypatch.setitem(PLANS[operator], "sm_80", special)
    assert plan_for(operator, "sm_80") is special
    for other in {*gate.ARCHITECTURES, INTERPRETER} - {"sm_80", "sm_90"}:
        assert plan_for(operator, other) is default
    for other in set(PLANS) - {operator}:
        assert plan_for(other, "sm_80") is PLANS[other][DEFAULT]


def test_hopper_alone_has_specialised_kernels() -> None:
    large = self_attention_problem("c3", 1024, batch=8)
    names = {a: kernels_of(a, large) for a in gate.ARCHITECTURES}
    own = {"specialised_forward", "specialised_backward_kv"}
    assert {a for a, launched in names.items() if own & set(launched)} == {"sm_90"}
    assert own <= set(names["sm_90"])
    several = kernels_of("sm_90", cross_attention_problem(1024, batch=8))
    assert several[:3] == ["specialised_forward", "specialised_forward", "join_sources"]
    assert several.count("specialised_backward_kv") == 2  # a launch for each source
    for other in (
        replace(cross_attention_problem(1024, batch=8), tokens=(3000, 1000)),
        cross_attention_problem(1024, batch=4),  # fewer blocks of queries than multiprocessors
    ):
        assert "attention_forward" in kernels_of("sm_90", other)
    few = kernels_of("sm_90", PROBLEM)  # fewer keys than a block
    assert not own & set(few)


def test_the_gate_and_the_operators_ask_the_table(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[str, str]] = []

    def record(operator: str, architecture: str) -> architectures.Plan:
        asked.append((operator, architecture))
        return lambda *arguments: []

    monkeypatch.setattr("hmc_fast.kernels.building.builds.plan_for", record)
    assert plan_passes(target("sm_90"), PROBLEM) == ([], [])
    assert asked == [("attention_forward", "sm_90"), ("attention_backward", "sm_90")]
    asked.clear()
    monkeypatch.setattr(operators, "plan_for", record)
    q, ks, vs = PROBLEM.tensors()
    outs, lse, weights = operators.multi_scale_attention(q, ks, vs, 0.125)
    operators.multi_scale_attention_backward(
        outs, lse, weights, q, ks, vs, outs, lse, weights, 0.125
    )
    x, weight = q.flatten(2), q.new_empty(512, 512)
    operators.gated_projection(x, [x], weight, weight[0], weight[0])
    assert asked == [(operator, INTERPRETER) for operator in PLANS]


def test_every_block_of_queries_divides_the_padding_of_the_statistics() -> None:
    """So no kernel of the backward pass masks them."""
    for architecture in (*gate.ARCHITECTURES, INTERPRETER):
        for kernel, entries in load_tiles(architecture).entries.items():
            if kernel == "delta" or "backward" in kernel:
                for tile in (tile for entry in entries for tile in entry.tiles):
                    assert ROW_BLOCK.value % tile.blocks["BLOCK_M"] == 0, (architecture, kernel)
