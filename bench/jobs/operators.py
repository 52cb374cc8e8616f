"""``bench kernels``: operators and blocks, and their traces."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from hmc_fast.bench.failures import describe
from hmc_fast.bench.measuring.traces import ncu_command, write_trace
from hmc_fast.bench.peers.peer import BoundCall
from hmc_fast.bench.run import Plan
from hmc_fast.bench.trials import AttentionTrials
from hmc_fast.devices import default_device, precision_dtype

OPERATOR_CASES: dict[str, tuple[str, ...]] = {
    "cpu": (
        "hsa_c4@224x1",
        "msca_c5@224x1",
        "hsa_c3@224x1",
        "hsa_block_c5@224x1",
    ),
    "gpu": (
        "hsa_c3@1024x8",
        "hsa_block_c3@1024x8",
        "msca_c5@1024x8",
        "hsa_c4@1024x8",
        "hsa_c5@1024x8",
        "hsa_c3@224x1",
        "hsa_c4@224x1",
        "hsa_c5@224x1",
        "msca_c5@224x1",
        "hsa_c4@512x16",
        "hsa_c3@224x64",
        "msca_c5@224x64",
    ),
}
"""Most important first: where a time budget runs out, the last ones are left."""


def write_traces(plan: Plan, folder: Path, *, on_stage: Callable[[str], object]) -> list[str]:
    """Write ``trace-CASE-PEER.json`` for what runs; returns the command lines for ``ncu``.

    A trace holds a forward pass and, where the peer can do it, a backward pass.
    """
    device = default_device()
    commands = []
    pairs = [(case, precision) for case in plan.cases for precision in plan.precisions]
    for case, precision in pairs:
        dtype = precision_dtype(precision)
        trials = AttentionTrials(case, dtype, device)
        for peer in plan.peers_of(case.kind):
            if peer.why_not(case, dtype, device) is not None:
                continue
            on_stage(f"{case.name} {precision}: trace of {peer.name}")
            name = f"{case.name} {precision} {peer.name}"
            path = folder / f"trace-{name.replace(' ', '-')}.json"
            try:
                call = trials.variants(peer)[-1].bind(case, trials.inputs[0])
                write_trace(partial(_forward_and_backward, call), name, path, device)
            except Exception as error:  # the rows have the reason; a trace is an extra
                on_stage(f"{name}: no trace: {describe(error)}")
        for task in case.tasks:
            report = folder / f"ncu-{case.name}-{task}"
            commands.append(ncu_command(case.name, task, precision, "hmc-fast", report))
    return commands


def _forward_and_backward(call: BoundCall) -> None:
    torch.autograd.grad(call.forward(), call.leaves, call.d_outs)
