"""Every launch of the model, bound, specialised and compiled by Triton's own JIT without a GPU.

A driver that only reports an architecture stands for the GPU's: what is not seen is the launch.
"""

import re
from collections.abc import Iterator
from dataclasses import replace
from itertools import chain, product
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from samples import sampled
from torch import Tensor
from triton.backends.compiler import GPUTarget
from triton.runtime.driver import driver

from hmc_fast.kernels.building import aot
from hmc_fast.kernels.building.builds import plan_passes
from hmc_fast.kernels.fused.architectures import plan_for
from hmc_fast.kernels.fused.launch import Launch, Target
from hmc_fast.kernels.fused.tiles import SHARED_MEMORY_KIB, load_tiles
from hmc_fast.kernels.geometry import CHANNELS, IMAGE_SIZES, MSCA_TARGET, model_problems
from hmc_fast.kernels.problem import AttentionProblem

pytestmark = pytest.mark.compile_only
MULTIPROCESSORS = 128
BATCH = 8


class Compiling:
    """Stands for a kernel in :meth:`Launch.run`: binds and compiles instead of launching."""

    def __init__(self, kernel: Any) -> None:
        self.kernel = kernel
        self.compiled: list[Any] = []

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        return lambda **arguments: self.compiled.append(self.kernel.warmup(grid=grid, **arguments))


@pytest.fixture
def architecture(request: pytest.FixtureRequest) -> Iterator[str]:
    """The architecture, reported by Triton's driver as that of the current device."""
    name: str = request.param
    number = int(name.removeprefix("sm_"))
    before = driver._active
    driver.set_active(
        SimpleNamespace(
            get_current_target=lambda: GPUTarget("cuda", number, aot.WARP_SIZE),
            get_current_device=lambda: number,  # Triton keeps kernels by device
            get_current_stream=lambda device: 0,
        )
    )
    yield name
    driver._active = before


def launches(architecture: str, size: int) -> Iterator[Launch]:
    """All that the model launches for an image of ``size``², on tensors without memory."""
    target = Target(load_tiles(architecture), MULTIPROCESSORS, "ieee")
    for shape in model_problems(BATCH):
        if shape.name.endswith(f"@{size}"):
            yield from chain(*plan_passes(target, shape))
            yield from projection(target, shape)


def projection(target: Target, shape: AttentionProblem) -> list[Launch]:
    """What follows an attention call: its outputs to the channels of the stage that asked."""
    widths = [d_v * shape.heads for d_v in shape.v_head_dims]
    channels = widths[0] if len(widths) == 1 else CHANNELS[MSCA_TARGET]

    def meta(*dims: int, of: torch.dtype = shape.dtype) -> Tensor:
        return torch.empty(dims, dtype=of, device="meta")

    x, row = meta(BATCH, shape.queries, channels), meta(channels, of=torch.float32)
    attended = [meta(BATCH, shape.queries, width) for width in widths]
    plan = plan_for("gated_projection", target.architecture)
    return plan(target, x, attended, meta(channels, sum(widths)), row, row, x)


def code(compiled: Any) -> str:
    """PTX without what follows the code: paths of source files, which tell where it was built."""
    text, files, _ = compiled.asm["ptx"].partition("\t.file\t")
    assert files
    assert ".entry" in text
    return str(text)


def lowered_from(compiled: Any) -> tuple[str, ...]:
    """What a warp-specialised kernel is compiled from, and what it takes.

    Triton 3.8 places such a kernel's barriers in another order from one compile to the next, so
    that its PTX is no two times the same.
    """
    text = re.sub(r" loc\(.*?\)$|^#loc.*$", "", compiled.asm["ttir"], flags=re.M)
    taken = ("shared", "num_warps", "num_stages", "maxnreg", "global_scratch_size", "target")
    return (text, *(str(getattr(compiled.metadata, name)) for name in taken))


@pytest.mark.systems
@pytest.mark.timeout(1800)
@pytest.mark.parametrize(
    ("architecture", "size"),
    sampled(product(("sm_80", "sm_90", "sm_120"), IMAGE_SIZES), [("sm_90", 512)]),
    indirect=["architecture"],
)
def test_the_jit_compiles_what_is_built_ahead_of_time(architecture: str, size: int) -> None:
    names = set()
    for launch in launches(architecture, size):
        kernel = Compiling(launch.kernel)
        replace(launch, kernel=kernel).run()
        (compiled,) = kernel.compiled
        assert compiled.metadata.target.arch == int(architecture.removeprefix("sm_"))
        assert compiled.metadata.shared <= SHARED_MEMORY_KIB[architecture] * 1024
        ahead = aot.compile_for(launch, architecture)
        same = lowered_from if launch.scratch else code
        assert same(compiled) == same(ahead), (launch.name, launch.tile)
        names.add(launch.name.replace("specialised", "attention"))
    kernels = {"attention_forward", "delta", "attention_backward_q", "attention_backward_kv"}
    assert names >= {*kernels, "gated_projection"}


@pytest.mark.parametrize("architecture", ["sm_90"], indirect=True)
def test_the_jit_refuses_an_argument_that_the_kernel_lacks(architecture: str) -> None:
    launch = next(launches(architecture, 224))
    wrong = replace(launch, constants={**launch.constants, "BLOCK_X": 64})
    with pytest.raises((KeyError, TypeError)):
        replace(wrong, kernel=Compiling(launch.kernel)).run()
