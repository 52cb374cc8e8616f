"""What is compared: implementations of the attention × precisions, on one device."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
import torch._dynamo
from torch import Tensor

from hmc_fast.devices import autocast, precision_dtype
from hmc_fast.kernels import AttentionProblem, ProjectionProblem
from hmc_fast.kernels.capability import Problem, reasons_against
from hmc_fast.kernels.geometry import QK_HEAD_DIM
from hmc_fast.models import (
    FilmModel,
    HierarchicalSelfAttention,
    ModelConfig,
    MultiScaleCrossAttention,
    build_model,
)

IMPLEMENTATIONS = {
    "eager": "reference attention, eager PyTorch",
    "compiled": "reference attention, the rest through torch.compile",
    "triton": "fused Triton attention, eager PyTorch around it",
}
_KERNEL_BACKEND = {"eager": "reference", "compiled": "reference", "triton": "triton"}
DEFAULT_PRECISIONS = {"cpu": ("fp32", "bf16"), "cuda": ("fp32", "bf16", "fp16")}


@dataclass(frozen=True)
class Candidate:
    """One implementation at one precision."""

    implementation: str
    precision: str

    @property
    def name(self) -> str:
        return f"{self.implementation} {self.precision}"

    def why_unavailable(self, model: FilmModel, device: torch.device) -> str | None:
        """The reason it cannot run here, or None."""
        if self.implementation == "compiled":
            return why_no_compiler(device)
        backend = _KERNEL_BACKEND[self.implementation]
        problems = _problems(model, device, precision_dtype(self.precision))
        reasons = [reason for problem in problems for reason in reasons_against(problem, backend)]
        return "; ".join(dict.fromkeys(reasons)) or None

    def prepare(
        self, config: ModelConfig, state: dict[str, Tensor], device: torch.device
    ) -> "PreparedModel":
        """A callable model with the parameters ``state``."""
        model = build_model(config, _KERNEL_BACKEND[self.implementation])
        model.load_state_dict(state)
        model.to(device).eval()
        call: Callable[[Tensor], Tensor] = model
        if self.implementation == "compiled":
            call = torch.compile(model, fullgraph=True, dynamic=False)
        return PreparedModel(model, call, device, self.precision)


@dataclass
class PreparedModel:
    """A model ready to be timed; parameters can be exchanged without building it anew."""

    model: FilmModel
    call: Callable[[Tensor], Any]
    device: torch.device
    precision: str

    def load(self, state: dict[str, Tensor]) -> None:
        """Copy other parameters of the same model into place."""
        self.model.load_state_dict(state)

    def __call__(self, images: Tensor) -> Tensor:
        """Images ``[B, 3, H, W]`` on the device to logits ``[B, classes]``."""
        # Every candidate and batch size is a graph of its own, more than the limit's default of 8.
        limit = torch._dynamo.config.patch(recompile_limit=256, accumulated_recompile_limit=4096)
        with limit, torch.inference_mode(), autocast(self.device, self.precision):
            logits: Tensor = self.call(images)
            return logits


def why_no_compiler(device: torch.device) -> str | None:
    """The reason why ``torch.compile`` cannot run on ``device``, or None."""
    compilers = [os.environ.get("CXX", "g++"), "g++", "clang++"]
    if device.type == "cpu" and not any(shutil.which(compiler) for compiler in compilers):
        return "torch.compile needs a C++ compiler on the CPU: install g++"
    return None


def _problems(model: FilmModel, device: torch.device, dtype: torch.dtype) -> list[Problem]:
    blocks = [
        block.value_head_dims
        for block in model.modules()
        if isinstance(block, HierarchicalSelfAttention | MultiScaleCrossAttention)
    ]
    attention = [
        AttentionProblem(1, 1, 1, (1,) * len(dims), dims, QK_HEAD_DIM, dtype, device)
        for dims in blocks
    ]
    return [*attention] or [ProjectionProblem(1, dtype, device)]
