"""Our blocked attention for CPUs, with eager PyTorch around it."""

from functools import partial

from hmc_fast.bench.peers.peer import ModuleVariant, Peer, operator_variants, why_no_backend

CPU = Peer(
    "cpu",
    "ours",
    "#2a9d8f",
    "blocked attention for CPUs, eager PyTorch around it",
    operators=operator_variants("cpu", "blocks of queries and keys"),
    blocks=(ModuleVariant("blocked attention", "cpu"),),
    models=(ModuleVariant("blocked attention", "cpu"),),
    why_not=partial(why_no_backend, "cpu"),
)
