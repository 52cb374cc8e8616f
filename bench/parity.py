"""Parity of whole models: the error budget of the operators, applied to logits."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from hmc_fast.bench.candidates import Candidate, PreparedModel
from hmc_fast.kernels.testing import BudgetUse, budget_use
from hmc_fast.models import ModelConfig, build_model

PARITY_FILMS = 8
PARITY_PIXELS = 8 * 256**2
"""Parity is checked on as many films as hold this many pixels, at least 2 and at most 8."""


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

    def check(self, prepared: PreparedModel, batch_sizes: Sequence[int]) -> BudgetUse:
        """A candidate's error against fp64, and what the error budget allows it.

        Every batch size is a compiled graph of its own, so each that will be timed is checked; the
        largest error counts.
        """
        uses = [self._check_batched(prepared, size) for size in batch_sizes]
        return max(uses, key=lambda use: (not use.within, use.max_error))

    def _check_batched(self, prepared: PreparedModel, size: int) -> BudgetUse:
        films = len(self.images)
        padded = self.images[torch.arange(math.ceil(films / size) * size) % films]
        logits = torch.cat([prepared(batch).cpu() for batch in torch.split(padded, size)])
        eager = self.eager_logits[prepared.precision]
        return budget_use("logits", logits[:films], eager, self.logits)
