"""OpenVINO on the exported graph."""

import copy
from collections.abc import Callable
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor, nn

from hmc_fast.bench.cases import Case
from hmc_fast.bench.peers.onnx_graph import GRAPH, attend_in_blocks, write_onnx
from hmc_fast.bench.peers.peer import ModuleVariant, Peer
from hmc_fast.environment import installed_version

HINTS = {torch.float32: "f32", torch.bfloat16: "bf16"}
"""OpenVINO's names of the precisions that it may compute in on a CPU."""


def _why_not(case: Case, dtype: torch.dtype, device: torch.device) -> str | None:
    if "training" in case.tasks:
        return "OpenVINO infers only"
    if device.type != "cpu":
        return "OpenVINO is timed on the CPU only"
    if dtype not in HINTS:
        return f"OpenVINO is timed in fp32 and bf16, not in {dtype}"
    for package in ("openvino", "onnxscript"):
        if installed_version(package) is None:
            return f"{package} is not installed: pip install 'hmc-fast[export,openvino]'"
    return None


def _compute_dtype(images: Tensor) -> torch.dtype:
    """That of the images, or of the autocast around the call."""
    return torch.get_autocast_dtype("cpu") if torch.is_autocast_enabled("cpu") else images.dtype


def _compiled_graph(model: nn.Module, images: Tensor) -> Callable[[Tensor], Tensor]:
    """The graph is fp32 whatever the precision: OpenVINO lowers it as its hint says."""
    import openvino

    hints = {
        "INFERENCE_PRECISION_HINT": HINTS[_compute_dtype(images)],
        "INFERENCE_NUM_THREADS": torch.get_num_threads(),
    }
    with TemporaryDirectory() as folder, torch.autocast("cpu", enabled=False):
        path = Path(folder) / "model.onnx"
        write_onnx(copy.deepcopy(model).float(), images.float(), path)
        return partial(_run, openvino.Core().compile_model(path, "CPU", hints))


def _run(graph: Any, images: Tensor) -> Tensor:
    (logits,) = graph([images.float().numpy()]).values()
    return torch.from_numpy(logits.copy()).to(images.dtype)


OPENVINO = Peer(
    "openvino",
    "runtime",
    "#7a3e65",
    "OpenVINO on the exported graph",
    models=(ModuleVariant(GRAPH, attend=attend_in_blocks, build=_compiled_graph),),
    why_not=_why_not,
    trainable=False,
)
