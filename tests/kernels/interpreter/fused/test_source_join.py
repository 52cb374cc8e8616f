"""The join of sources by itself: what it computes, and that it stays inside its tensors."""

import subprocess
from collections.abc import Callable

JOIN = """
import torch
from hmc_fast.kernels.fused.launch import Target
from hmc_fast.kernels.fused.source_join import plan_source_join
from hmc_fast.kernels.fused.tiles import load_tiles

B, M, H, D_VS = 2, 37, 3, (16, 64, 32)  # a ragged block of 32 queries
torch.manual_seed(0)

def joined(at_end, claimed):
    def placed(*shape, dtype=torch.float32):
        return guarded(shape, at_end, dtype).copy_(torch.randn(shape))

    q = placed(B, M + claimed, H, 16, dtype=torch.float16)
    outs = [placed(B, M, H, d, dtype=torch.float16) for d in D_VS]
    lses = [placed(B, H, M) * 5 - 300 * (s == 1) for s in range(3)]  # the second counts for nothing
    lses = [guarded(x.shape, at_end).copy_(x) for x in lses]
    lse, weights = placed(B, H, M), placed(B, H, M, 3)
    before = [out.double() for out in outs]
    target = Target(load_tiles("interpreter"), 1, "ieee")
    plan_source_join(target, q, lses, outs, lse, weights).run()
    exact = torch.stack(lses, -1).double()
    share = exact.softmax(-1)
    torch.testing.assert_close(lse.double(), exact.logsumexp(-1), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(weights.double(), share, atol=1e-6, rtol=1e-5)
    for s, out in enumerate(outs):
        expected = before[s] * share[..., s].transpose(1, 2)[..., None]
        torch.testing.assert_close(out.double(), expected, atol=1e-6, rtol=1e-3)
    assert not outs[1].any()

"""

Run = Callable[[str], "subprocess.CompletedProcess[str]"]


def test_every_output_is_weighted_and_nothing_beside_it_touched(run_guarded: Run) -> None:
    result = run_guarded(JOIN + "joined(False, 0); joined(True, 0); print('both')")
    assert (result.returncode, result.stdout) == (0, "both\n"), result.stderr


def test_a_row_too_many_is_noticed(run_guarded: Run) -> None:
    result = run_guarded(JOIN + "joined(True, 1)")
    assert result.returncode != 0
