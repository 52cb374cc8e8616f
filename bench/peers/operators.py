"""Our operators as variants, whatever the backend behind them."""

from collections.abc import Callable
from functools import partial

from torch import Tensor

from hmc_fast.bench.cases import Case, Inputs
from hmc_fast.bench.peers.peer import BoundCall, Variant, grad_leaves, split_leaves
from hmc_fast.kernels import attention, multi_scale_attention


def operator_variants(backend: str, name: str) -> Callable[[Case], list[Variant]]:
    """The one variant of a backend, for :attr:`Peer.operators`; ``name`` says what it does."""
    return lambda case: [Variant(name, partial(_bind, backend))]


def _bind(backend: str, case: Case, inputs: Inputs) -> BoundCall:
    leaves = grad_leaves(inputs.leaves)
    q, ks, vs = split_leaves(leaves)

    def forward() -> list[Tensor]:
        if len(ks) == 1:
            return [attention(q, ks[0], vs[0], backend=backend)[0]]
        return multi_scale_attention(q, ks, vs, backend=backend)[0]

    return BoundCall(forward, leaves, inputs.d_outs)
