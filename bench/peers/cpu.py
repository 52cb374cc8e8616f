"""Our blocked attention for CPUs, with eager PyTorch or the prepared model around it."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from hmc_fast.bench.cases import Case
from hmc_fast.bench.peers.peer import ModuleVariant, Peer, operator_variants, why_no_backend
from hmc_fast.inference import prepare
from hmc_fast.models import model_entry


def _prepared(model: nn.Module, images: Tensor) -> Callable[[Tensor], Tensor]:
    return prepare(model)


def _why_not_prepared(case: Case, dtype: torch.dtype, device: torch.device) -> str | None:
    if "training" in case.tasks:
        return "a prepared model infers only"
    if device.type != "cpu":
        return "its attention needs a CPU"
    if not model_entry(case.subject).has_attention:
        return None
    return why_no_backend("cpu", case, dtype, device)


CPU = Peer(
    "cpu",
    "ours",
    "#009e73",
    "blocked attention for CPUs, eager PyTorch around it",
    operators=operator_variants("cpu", "blocks of queries and keys"),
    blocks=(ModuleVariant("blocked attention", "cpu"),),
    models=(ModuleVariant("blocked attention", "cpu"),),
    why_not=partial(why_no_backend, "cpu"),
)
CPU_PREPARED = Peer(
    "cpu_prepared",
    "ours",
    "#005c43",
    "blocked attention for CPUs in the prepared model: batch norms folded, weights laid out once",
    models=(ModuleVariant("batch norms folded", "cpu", build=_prepared),),
    why_not=_why_not_prepared,
    trainable=False,
)
