"""No read or write beside a tensor: each lies against a page that must not be touched."""

import signal
import subprocess
from collections.abc import Callable

import pytest

Run = Callable[[str], "subprocess.CompletedProcess[str]"]

CHECK = """
from hmc_fast.kernels.cpu import backward, blocks, forward, precision
from hmc_fast.kernels.cpu.precision import products_of
from hmc_fast.kernels.testing import textbook_attention

precision.LEAST_SCORES = blocks.LEAST_OF_ONEDNN = 1
forward.FORWARD = blocks.BlockShape(queries=32, keys=16)
backward.BACKWARD = blocks.BlockShape(queries=16, keys=48)
torch.manual_seed(0)
for at_end in (False, True):
    for dtype in (torch.float32, torch.bfloat16, torch.float16):
        for queries, lengths, width, value_widths in (
            (1, (1,), 16, (17,)), (37, (53, 5), 24, (40, 31)), (70, (131,), 64, (256,)),
        ):
            def filled(*shape):
                return guarded(shape, at_end, dtype).copy_(torch.randn(shape))

            def blank(*shape, dtype=dtype):
                return guarded(shape, at_end, dtype)

            q = filled(1, queries, width)
            ks = [filled(1, n, width) for n in lengths]
            vs = [filled(1, n, d) for n, d in zip(lengths, value_widths)]
            outs = [blank(1, queries, d) for d in value_widths]
            lse = blank(1, queries, dtype=torch.float32)
            weights = blank(1, queries, len(lengths), dtype=torch.float32)
            with products_of(q, ks):
                forward.attend(q, ks, vs, 0.25, outs, lse, weights)
            expected = textbook_attention(
                q[:, :, None].double(), [k[:, :, None].double() for k in ks],
                [v[:, :, None].double() for v in vs], 0.25,
            )
            for out, e in zip(outs, expected[0]):
                torch.testing.assert_close(out.double(), e[:, :, 0], rtol=1e-2, atol=1e-2)
            side = backward.QuerySide.of(
                q, ks, outs, lse, weights, outs, lse, weights, 0.25,
                rounds=precision.rounds_products(q, ks),
            )
            gradients = [torch.empty_like(t) for t in (q, *ks, *vs)]
            placed = [blank(*g.shape) for g in gradients]
            n = len(ks)
            for dq, *others in (gradients, placed):
                with products_of(q, ks):
                    backward.differentiate(side, ks, vs, 0.25, dq, others[:n], others[n:])
            for a, b in zip(gradients, placed):
                assert torch.equal(a, b)
print("untouched")
"""


def test_nothing_beside_a_tensor_is_touched(run_guarded: Run) -> None:
    result = run_guarded(CHECK)
    assert (result.returncode, result.stdout) == (0, "untouched\n"), result.stderr


@pytest.mark.parametrize(
    "overrun",
    [
        "guarded((1000,), True, extra=1)[1000].item()",
        "guarded((1000,), True, extra=1)[1000:].fill_(1.0)",
    ],
    ids=["read", "write"],
)
def test_an_overrun_is_noticed(overrun: str, run_guarded: Run) -> None:
    assert run_guarded(overrun).returncode == -signal.SIGSEGV
