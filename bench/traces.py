"""``--profile``: a PyTorch trace of every case, and the Nsight Compute command for our kernels."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from hmc_fast.bench.failures import describe
from hmc_fast.bench.kernel_bench import KernelBenchOptions, case_peers
from hmc_fast.bench.peers import BoundCall
from hmc_fast.bench.profiler import ncu_command, write_trace
from hmc_fast.devices import default_device, precision_dtype


def write_traces(
    options: KernelBenchOptions, folder: Path, *, on_stage: Callable[[str], object]
) -> list[str]:
    """Write ``trace-CASE-PEER.json`` for what runs; returns the command lines for ``ncu``.

    A trace holds a forward pass and, where the peer can do it, a backward pass.
    """
    device = default_device()
    commands = []
    for case, precision in options.plan():
        dtype = precision_dtype(precision)
        inputs = case.inputs(dtype, device, seed=0)
        for peer in case_peers(case, options.peers):
            if peer.why_not(case, dtype, device) is not None:
                continue
            on_stage(f"{case.name} {precision}: trace of {peer.name}")
            variant = peer.variants(case)[-1]
            call = variant.bind(case, inputs)
            name = f"{case.name} {precision} {peer.name}"
            path = folder / f"trace-{name.replace(' ', '-')}.json"
            try:
                write_trace(partial(_forward_and_backward, call), name, path, device)
            except Exception as error:  # the rows have the reason; a trace is an extra
                on_stage(f"{name}: no trace: {describe(error)}")
        for which in options.passes:
            report = folder / f"ncu-{case.name}-{which}"
            commands.append(ncu_command(case.name, which, precision, "hmc-fast", report))
    return commands


def _forward_and_backward(call: BoundCall) -> None:
    torch.autograd.grad(call.forward(), call.leaves, call.d_outs)
