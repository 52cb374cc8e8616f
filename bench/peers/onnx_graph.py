"""A model as an ONNX graph of plain operators, for the runtimes that read one."""

from pathlib import Path

import torch
from torch import Tensor, nn

ONNX_OPSET = 20


def write_onnx(model: nn.Module, images: Tensor, path: Path) -> None:
    """Export ``model`` for images ``[B, 3, H, W]`` of this very shape and dtype."""
    torch.onnx.export(model, (images,), path, dynamo=True, opset_version=ONNX_OPSET, verbose=False)
