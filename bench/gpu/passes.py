"""A pass of every fused kernel on odd shapes, engine kernels included, for compute-sanitizer.

With --stray an output is too short for what its kernel writes: the sanitizer must find it.
"""

import sys

import torch

from hmc_fast.kernels.building.engine_kernels import plan_engine_attention
from hmc_fast.kernels.fused.launch import Target
from hmc_fast.kernels.fused.tiles import architecture_of, load_tiles
from hmc_fast.kernels.testing import assert_parity, assert_projection_parity


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
    few, many = draw(1, 3, 2, 24), draw(2, 97, 3, 64)
    assert_parity(few, [draw(1, 1031, 2, 24)], [draw(1, 1031, 2, 40)], backend="triton")
    sources = [draw(2, 131, 3, 64), draw(2, 49, 3, 64)]
    values = [draw(2, 131, 3, 300), draw(2, 49, 3, 128)]
    assert_parity(many, sources, values, backend="triton")
    attended = [draw(67, 33), draw(67, 65)]
    gate = torch.randn(130, device="cuda")
    assert_projection_parity(
        draw(67, 130), attended, draw(130, 98), gate, gate.clone(), backend="triton"
    )
    engine_kernels()
    print("every kernel ran and kept the error budget")


if __name__ == "__main__":
    main()
