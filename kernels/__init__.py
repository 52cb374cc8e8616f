"""Attention with ``d_v != d_qk``, over one source or several, behind one contract.

The operators are :func:`attention`, :func:`multi_scale_attention` and the
:func:`gated_projection` that ends a block; ``backend`` picks the implementation.
:class:`MultiheadAttention` is called as PyTorch's module of that name. This package imports nothing
else of ``hmc_fast``.
"""

from hmc_fast.kernels.api import attention, gated_projection, multi_scale_attention
from hmc_fast.kernels.backend import BACKENDS, BackendChoice, resolve_backend, use_backend
from hmc_fast.kernels.capability import CAPABILITIES, NOWHERE, Limit, why_not
from hmc_fast.kernels.multihead import MultiheadAttention
from hmc_fast.kernels.problem import AttentionProblem, ProjectionProblem

__all__ = [
    "BACKENDS",
    "CAPABILITIES",
    "NOWHERE",
    "AttentionProblem",
    "BackendChoice",
    "Limit",
    "MultiheadAttention",
    "ProjectionProblem",
    "attention",
    "gated_projection",
    "multi_scale_attention",
    "resolve_backend",
    "use_backend",
    "why_not",
]
