"""Parity of whole models: the error budget of the operators, applied to logits."""

from dataclasses import dataclass

import torch
from torch import Tensor

from hmc_fast.bench.candidates import Candidate, PreparedModel
from hmc_fast.kernels.testing import BudgetUse, budget_use
from hmc_fast.models import ModelConfig, build_model


@dataclass(frozen=True)
class LogitTruth:
    """Logits ``[films, classes]`` of some films in fp64, and eager PyTorch's per precision."""

    images: Tensor
    logits: Tensor
    eager_logits: dict[str, Tensor]

    @classmethod
    def compute(
        cls,
        config: ModelConfig,
        state: dict[str, Tensor],
        images: Tensor,
        precisions: list[str],
    ) -> "LogitTruth":
        """From the eager reference, in fp64 and at each of ``precisions``.

        ``images`` are ``[films, 3, H, W]`` on the device that is benchmarked.
        """
        model = build_model(config, "reference")
        model.load_state_dict(state)
        model.to(images.device, torch.float64).eval()
        with torch.inference_mode():
            truth = torch.cat([model(image.double()) for image in torch.split(images, 1)]).cpu()
        del model
        eager_logits = {}
        for precision in precisions:
            eager = Candidate("eager", precision).prepare(config, state, images.device)
            eager_logits[precision] = eager(images).cpu()
        return cls(images, truth, eager_logits)

    def check(self, prepared: PreparedModel) -> BudgetUse:
        """A candidate's error against fp64, and what the error budget allows it."""
        logits = prepared(self.images).cpu()
        return budget_use("logits", logits, self.eager_logits[prepared.precision], self.logits)
