"""A pass of every fused kernel on odd shapes, engine kernels included, for compute-sanitizer.

With --stray an output is too short for what its kernel writes: the sanitizer must find it.
"""

import sys
from dataclasses import replace

import torch

from hmc_fast.kernels.building.engine_kernels import plan_engine_attention
from hmc_fast.kernels.fused.launch import Target
from hmc_fast.kernels.fused.tiles import architecture_of, load_tiles
from hmc_fast.kernels.problem import AttentionProblem
from hmc_fast.kernels.testing import assert_parity, assert_projection_parity

PROBLEMS = (
    AttentionProblem(1, 3, 2, (1031,), (40,), 24, name="split keys"),
    AttentionProblem(2, 97, 3, (131, 49), (300, 128), 64, name="sources, value chunks"),
    AttentionProblem(2, 301, 16, (203,), (128,), 64, name="what specialised kernels take"),
)
"""In bf16. Between them they launch every attention kernel of each architecture."""


def draw(*shape: int) -> torch.Tensor:
    """Standard normal bf16 on the GPU."""
    return torch.randn(shape, device="cuda", dtype=torch.bfloat16)


def engine_kernels(*, stray: bool = False) -> None:
    """Those that TensorRT's plugin takes; with ``stray`` they write past their outputs."""
    target = Target(load_tiles(architecture_of(torch.device("cuda", 0))), 1, "ieee")
    for widths in ((40,), (40, 64)):
        ks = [draw(2, 131, 3, 64) for _ in widths]
        vs = [draw(2, 131, 3, width) for width in widths]
        outs = [draw(1 if stray else 2, 49, 3, width) for width in widths]
        plan_engine_attention(target, draw(2, 49, 3, 64), ks, vs, 0.125, outs).run()
    torch.cuda.synchronize()


def main() -> None:
    """The pass, or with ``--stray`` the planted fault alone."""
    if sys.argv[1:] == ["--stray"]:
        engine_kernels(stray=True)
        return
    torch.manual_seed(0)
    for problem in PROBLEMS:
        q, ks, vs = replace(problem, device=torch.device("cuda")).tensors()
        assert_parity(q, ks, vs, backend="triton")
    attended = [draw(67, 33), draw(67, 65)]
    gate = torch.randn(130, device="cuda")
    assert_projection_parity(
        draw(67, 130), attended, draw(130, 98), gate, gate.clone(), backend="triton"
    )
    engine_kernels()
    print("every kernel ran and kept the error budget")


if __name__ == "__main__":
    main()
