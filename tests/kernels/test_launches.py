"""The model's own tensors, with their strides, launch what the gate and the JIT test compile."""

from collections.abc import Iterator, Sequence
from itertools import chain

import pytest
import torch
from torch import Tensor

from hmc_fast import create_model
from hmc_fast.kernels.building import aot
from hmc_fast.kernels.building.builds import plan_passes
from hmc_fast.kernels.fused import operators
from hmc_fast.kernels.fused.launch import Launch, Target
from hmc_fast.kernels.fused.tiles import load_tiles
from hmc_fast.kernels.geometry import IMAGE_SIZES, model_problems
from hmc_fast.models import attention_blocks

MULTIPROCESSORS = 128
BATCH = 8


def code_of(launch: Launch) -> str:
    """All that decides a launch's code."""
    options = (launch.num_warps, launch.num_stages, launch.max_registers)
    return repr((launch.name, options, aot.specialise(launch)))


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch, target: Target) -> list[Launch]:
    """What the operators launch, in place of launching it."""
    seen: list[Launch] = []
    monkeypatch.setattr(operators, "target_of", lambda x: target)
    monkeypatch.setattr(operators, "run", lambda x, launches: seen.extend(launches))
    return seen


@pytest.fixture(params=["sm_80", "sm_90", "sm_120"])
def target(request: pytest.FixtureRequest) -> Target:
    return Target(load_tiles(request.param), MULTIPROCESSORS, "ieee")


def attend(q: Tensor, ks: Sequence[Tensor], vs: Sequence[Tensor]) -> tuple[list[Tensor], None]:
    """A forward pass of the operators and its backward pass, on tensors without memory."""
    scale = q.shape[-1] ** -0.5
    outs, lse, weights = operators.multi_scale_attention(q, ks, vs, scale)
    results = (outs, lse, weights)
    operators.multi_scale_attention_backward(*results, q, ks, vs, *results, scale)
    return outs, None


def planned(target: Target, size: int) -> Iterator[Launch]:
    for shape in model_problems(BATCH):
        if shape.name.endswith(f"@{size}"):
            yield from chain(*plan_passes(target, shape))


@pytest.mark.parametrize("size", IMAGE_SIZES)
def test_the_model_launches_what_is_compiled(
    size: int, target: Target, launched: list[Launch]
) -> None:
    with torch.device("meta"), torch.no_grad():
        model = create_model("hmc_net").to(torch.bfloat16).eval()
        for block in attention_blocks(model):
            block.attend = attend
        images = torch.empty(BATCH, 3, size, size, dtype=torch.bfloat16)
        model(images.to(memory_format=torch.channels_last))
    compiled = {code_of(launch) for launch in planned(target, size)}
    names = {launch.name for launch in launched}
    assert names & {"attention_forward", "specialised_forward"}
    assert names & {"attention_backward_kv", "specialised_backward_kv"}
    missing = [launch.name for launch in launched if code_of(launch) not in compiled]
    assert not missing
