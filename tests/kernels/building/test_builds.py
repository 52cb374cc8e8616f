"""The gate builds each code of the model's launches once, and builds what it names."""

from itertools import chain

import pytest
import torch

from hmc_fast.kernels.building import aot, builds
from hmc_fast.kernels.building.builds import ModelBuild, builds_for, kernel_of, plan_passes
from hmc_fast.kernels.fused.launch import Launch, Target
from hmc_fast.kernels.fused.tiles import load_tiles
from hmc_fast.kernels.geometry import cross_attention_problem


def code_of(launch: Launch) -> str:
    options = (launch.num_warps, launch.num_stages, launch.max_registers)
    return repr((kernel_of(launch), options, aot.specialise(launch)))


def test_each_source_with_a_launch_of_its_own_is_built(monkeypatch: pytest.MonkeyPatch) -> None:
    shape = cross_attention_problem(1024, batch=8)
    monkeypatch.setattr(builds, "model_problems", lambda: [shape])
    built = [
        build
        for build in builds_for("sm_90")
        if isinstance(build, ModelBuild) and build.dtype == torch.bfloat16
    ]
    target = Target(load_tiles("sm_90"), 128, "ieee")
    planned = [code_of(launch) for launch in chain(*plan_passes(target, shape))]
    assert sorted(code_of(build.launch()) for build in built) == sorted(set(planned))
    forwards = [build for build in built if build.kernel == "specialised_forward"]
    assert [build.launch().constants["D_V"] for build in forwards] == list(shape.v_head_dims)
    assert len({build.problem for build in forwards}) == 2
