"""Which kernels a profiler is told to count."""

import re

import pytest

from hmc_fast.bench.measuring.traces import KERNEL_FILTERS
from hmc_fast.kernels.building.builds import plan_passes
from hmc_fast.kernels.fused.launch import Launch, Target
from hmc_fast.kernels.fused.tiles import load_tiles
from hmc_fast.kernels.geometry import model_problems


def is_counted(launch: Launch, part: str) -> bool:
    pattern = KERNEL_FILTERS[part].removeprefix("regex:")
    return re.search(pattern, launch.kernel.fn.__name__) is not None


@pytest.mark.parametrize("architecture", ["sm_80", "sm_90"])
def test_every_launch_of_a_pass_is_counted_and_none_of_the_other(architecture: str) -> None:
    target = Target(load_tiles(architecture), 132, "ieee")
    for problem in model_problems():
        for part, launches in zip(
            ("forward", "backward"), plan_passes(target, problem), strict=True
        ):
            for launch in launches:
                counted = {name for name in KERNEL_FILTERS if is_counted(launch, name)}
                assert counted == {part, "both"}, launch.name
