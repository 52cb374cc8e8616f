"""A model as an ONNX graph of plain operators, for the runtimes that read one."""

from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor, nn

from hmc_fast.export.attention import in_blocks

ONNX_OPSET = 20
GRAPH = f"ONNX, opset {ONNX_OPSET}, queries in blocks"
"""What the graph is, in the name of a variant."""


def attend_in_blocks(
    q: Tensor, ks: Sequence[Tensor], vs: Sequence[Tensor]
) -> tuple[list[Tensor], None]:
    """Attention for the blocks' seam, as exported graphs have it."""
    return in_blocks(q, ks, vs, q.shape[-1] ** -0.5), None


def write_onnx(model: nn.Module, images: Tensor, path: Path) -> None:
    """Export ``model`` for images ``[B, 3, H, W]`` of this very shape and dtype."""
    torch.onnx.export(model, (images,), path, dynamo=True, opset_version=ONNX_OPSET, verbose=False)
