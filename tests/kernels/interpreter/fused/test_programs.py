"""What programs of a grid touch, and that their order does not matter."""

import inspect
import signal
import subprocess
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hmc_fast.kernels import attention, gated_projection, multi_scale_attention

GUARD_LAUNCHES = """
from dataclasses import replace
from hmc_fast.kernels import attention, gated_projection, multi_scale_attention
from hmc_fast.kernels.fused import operators

from torch import Tensor

unguarded = operators.run
launched = set()

def run_with_guards(at_end, x, launches):
    for launch in launches:
        pairs = []

        def placed(argument):
            if isinstance(argument, (tuple, list)):
                return type(argument)(placed(a) for a in argument)
            if not isinstance(argument, torch.Tensor):
                return argument
            span = 1 + sum((n - 1) * step for n, step in zip(argument.shape, argument.stride()))
            flat = guarded((span,), at_end, argument.dtype)
            copy = flat.as_strided(argument.shape, argument.stride()).copy_(argument)
            pairs.append((argument, copy))
            return copy

        arguments = {name: placed(argument) for name, argument in launch.arguments.items()}
        unguarded(x, [replace(launch, arguments=arguments)])
        for original, copy in pairs:
            original.copy_(copy)
        launched.add(launch.name)
"""
CHECK = """
for dtype, at_end in ((torch.float16, False), (torch.float32, True)):
    operators.run = unguarded
    expected = everything(dtype)
    operators.run = lambda x, launches: run_with_guards(at_end, x, launches)
    for actual, e in zip(everything(dtype), expected, strict=True):
        assert torch.equal(actual, e)
print(*sorted(launched))
"""
OVERRUN = """
def longer(x, launches):
    for launch in launches:
        arguments = {**launch.arguments, "queries": launch.arguments["queries"] + 1}
        run_with_guards(True, x, [replace(launch, arguments=arguments)])

operators.run = longer
attention(*(torch.randn(1, 4, 1, 16) for _ in range(3)), backend="triton")
"""
KERNELS = (
    "attention_backward_kv attention_backward_q attention_forward combine_splits delta "
    "gated_projection\n"
)

Run = Callable[[str], "subprocess.CompletedProcess[str]"]


def everything(dtype: torch.dtype) -> list[Tensor]:
    """Results and gradients of all operators; few queries against many keys are split."""
    generator = torch.Generator().manual_seed(3)

    def drawn(*shape: int) -> Tensor:
        return torch.randn(shape, generator=generator).to(dtype).requires_grad_()

    results = []
    for queries, lengths, heads, width, value_widths in (
        (1, (1,), 1, 16, (17,)),
        (37, (53, 5), 2, 24, (40, 31)),
        (5, (300, 70), 1, 64, (65, 128)),
    ):
        q = drawn(1, queries, heads, width)
        ks = [drawn(1, n, heads, width) for n in lengths]
        vs = [drawn(1, n, heads, d) for n, d in zip(lengths, value_widths, strict=True)]
        if len(ks) == 1:
            out, lse = attention(q, ks[0], vs[0], backend="triton")
            outs, statistics = [out], [lse]
        else:
            outs, lse, weights = multi_scale_attention(q, ks, vs, backend="triton")
            statistics = [lse, weights]
        total = torch.stack([t.float().square().sum() for t in (*outs, *statistics)]).sum()
        results += [*outs, *statistics, *torch.autograd.grad(total, [q, *ks, *vs])]
        x, attended = drawn(1, queries, 40), [out.detach().flatten(2) for out in outs]
        weight = drawn(40, sum(a.shape[2] for a in attended))
        bias, gamma = drawn(40).float(), drawn(40).float()
        results.append(gated_projection(x, attended, weight, bias, gamma, backend="triton"))
    return [result.detach().clone() for result in results]


def test_nothing_beside_a_tensor_is_touched(run_guarded: Run) -> None:
    """Every tensor of every launch lies against a protected page, before it and behind it."""
    result = run_guarded(GUARD_LAUNCHES + inspect.getsource(everything) + CHECK)
    assert (result.returncode, result.stdout) == (0, KERNELS), result.stderr


def test_an_overrun_is_noticed(run_guarded: Run) -> None:
    assert run_guarded(GUARD_LAUNCHES + OVERRUN).returncode == -signal.SIGSEGV


@pytest.mark.parametrize("order", ["shuffled", "backwards"])
def test_the_order_of_programs_changes_no_bit(
    order: str, run_in_order: Callable[[str], Callable[[], int]]
) -> None:
    expected = everything(torch.float32)
    moved = run_in_order(order)
    for actual, e in zip(everything(torch.float32), expected, strict=True):
        assert torch.equal(actual, e)
    assert moved() > 20
