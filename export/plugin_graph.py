"""The ONNX graph in which attention is a node of the plugin, not matrix products and a softmax."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from hmc_fast.errors import UserError
from hmc_fast.export.plugin import (
    ATTENTION,
    NAMESPACE,
    TWO_SOURCE_ATTENTION,
    VERSION,
    default_scale,
)
from hmc_fast.kernels import ops


def decompositions() -> dict[Any, Callable[..., Any]]:
    """Table for ``ExportedProgram.run_decompositions``: attention becomes symbolic plugin nodes.

    TensorRT's parser finds a plugin by the node's type and its ``plugin_namespace``; ``aot`` asks
    for the implementation that needs no Python at run time. Log-sum-exp and scale weights, which
    the plugins do not give, must be unused in the graph.
    """
    return {
        **ops.decompositions(),
        torch.ops.hmc_fast.attention_forward.default: _attention,
        torch.ops.hmc_fast.multi_scale_attention_forward.default: _multi_scale_attention,
    }


def _attention(q: Tensor, k: Tensor, v: Tensor, scale: float, backend: str) -> tuple[Tensor, ...]:
    (out,) = _plugin_node(ATTENTION, q, [k, v], [v], scale)
    batch, queries, heads, _ = q.shape
    return out, q.new_zeros(batch, heads, queries, dtype=torch.float32)


def _multi_scale_attention(
    q: Tensor, ks: Sequence[Tensor], vs: Sequence[Tensor], scale: float, backend: str
) -> tuple[list[Tensor], Tensor, Tensor]:
    if len(vs) != 2:
        raise UserError(f"the plugin attends to 2 sources, this model to {len(vs)}")
    pairs = [tensor for pair in zip(ks, vs, strict=True) for tensor in pair]
    outs = _plugin_node(TWO_SOURCE_ATTENTION, q, pairs, vs, scale)
    batch, queries, heads, _ = q.shape
    lse = q.new_zeros(batch, heads, queries, dtype=torch.float32)
    return list(outs), lse, lse.unsqueeze(-1).expand(-1, -1, -1, len(vs)).clone()


def _plugin_node(
    name: str, q: Tensor, keys_and_values: Sequence[Tensor], vs: Sequence[Tensor], scale: float
) -> Sequence[Tensor]:
    if not math.isclose(scale, default_scale(q.shape[3])):
        raise UserError(f"the plugin's scale is 1/√{q.shape[3]}, this model's {scale}")
    inputs = [tensor.contiguous() for tensor in (q, *keys_and_values)]
    return torch.onnx.ops.symbolic_multi_out(
        f"{NAMESPACE}::{name}",
        inputs,
        {"plugin_namespace": NAMESPACE, "plugin_version": VERSION, "aot": 1},
        dtypes=[q.dtype] * len(vs),
        shapes=[[*q.shape[:3], v.shape[3]] for v in vs],
        version=int(VERSION),
    )
