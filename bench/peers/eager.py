"""The reference in eager PyTorch, the yardstick of every comparison."""

from hmc_fast.bench.peers.peer import ModuleVariant, Peer, operator_variants

EAGER = Peer(
    "eager",
    "reference",
    "#8c8c8c",
    "reference attention, eager PyTorch",
    operators=operator_variants("reference", "reference in query chunks, fp32 inside"),
    blocks=(ModuleVariant("the reference block"),),
    models=(ModuleVariant("reference attention"),),
)
