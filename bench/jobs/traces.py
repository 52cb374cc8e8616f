"""Traces of the first way in which each peer differentiates a case, for profilers."""

import shlex
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from hmc_fast.bench.failures import describe
from hmc_fast.bench.measuring.traces import ncu_command, write_trace
from hmc_fast.bench.peers.peer import BoundCall
from hmc_fast.bench.run import Plan
from hmc_fast.bench.trials import attention_variants
from hmc_fast.devices import default_device, precision_dtype


def write_traces(plan: Plan, folder: Path, *, on_stage: Callable[[str], object]) -> list[str]:
    """Write ``trace-CASE-PEER.json`` for what runs; returns the command lines for ``ncu``.

    A trace holds a forward pass and, where the peer can do it, a backward pass.
    """
    device = default_device()
    commands = []
    pairs = [(case, precision) for case in plan.cases for precision in plan.precisions]
    for case, precision in pairs:
        dtype = precision_dtype(precision)
        inputs = case.inputs(dtype, device, seed=0)
        for peer in plan.peers_of(case.kind):
            if peer.why_not(case, dtype, device) is not None:
                continue
            on_stage(f"{case.name} {precision}: trace of {peer.name}")
            name = f"{case.name} {precision} {peer.name}"
            path = folder / f"trace-{name.replace(' ', '-')}.json"
            try:
                variants = attention_variants(case, peer)
                variant = next(v for v in variants if "backward" in v.tasks)
                call = variant.bind(case, inputs)
                write_trace(partial(_forward_and_backward, call), name, path, device)
            except Exception as error:  # the rows have the reason; a trace is an extra
                on_stage(f"{name}: no trace: {describe(error)}")
        for task in case.tasks:
            report = folder / f"ncu-{case.name}-{task}"
            words = ncu_command(case.name, task, precision, ["hmc-fast"], report)
            commands.append(shlex.join(words))
    return commands


def _forward_and_backward(call: BoundCall) -> None:
    torch.autograd.grad(call.forward(), call.leaves, call.d_outs)
