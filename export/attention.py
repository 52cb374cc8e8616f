"""The attention operators as ONNX and TensorRT want them: plain matrix products and one softmax.

The score matrix is formed whole, its softmax is computed in fp32, and the products around it stay
in the dtype of the graph: a strongly typed engine then runs them on its half-precision units, which
:func:`hmc_fast.kernels.ops.decompositions`, all in fp32, would forbid.
"""

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hmc_fast.kernels import ops


def decompositions() -> dict[Any, Callable[..., Any]]:
    """Table for ``ExportedProgram.run_decompositions``."""
    return {
        **ops.decompositions(),
        torch.ops.hmc_fast.attention_forward.default: attention,
        torch.ops.hmc_fast.multi_scale_attention_forward.default: multi_scale_attention,
    }


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float, backend: str) -> tuple[Tensor, Tensor]:
    """As :func:`hmc_fast.kernels.attention`; ``backend`` is ignored."""
    outs, lse, _ = multi_scale_attention(q, [k], [v], scale, backend)
    return outs[0], lse


def multi_scale_attention(
    q: Tensor, ks: Sequence[Tensor], vs: Sequence[Tensor], scale: float, backend: str
) -> tuple[list[Tensor], Tensor, Tensor]:
    """As :func:`hmc_fast.kernels.multi_scale_attention`; ``backend`` is ignored."""
    queries = (q * scale).transpose(1, 2)  # [B, H, M, Dqk]
    scores = [(queries @ k.permute(0, 2, 3, 1)).float() for k in ks]
    union = scores[0] if len(scores) == 1 else torch.cat(scores, dim=-1)
    shares = torch.split(union.softmax(dim=-1), [k.shape[1] for k in ks], dim=-1)
    outs = [
        (share.to(v.dtype) @ v.transpose(1, 2)).transpose(1, 2).contiguous()
        for share, v in zip(shares, vs, strict=True)
    ]
    weights = torch.stack([share.sum(dim=-1) for share in shares], dim=-1)
    return outs, union.logsumexp(dim=-1), weights
