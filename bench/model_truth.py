"""Parity of whole models: logits of the timed call, gradients of the timed step, against fp64."""

import copy
import math
from collections.abc import Callable

import torch
from torch import Tensor

from hmc_fast.bench.model_variants import TrainingStep
from hmc_fast.bench.parity import PARITY_FILMS, PARITY_PIXELS
from hmc_fast.kernels.testing import EAGER_ERROR_FACTOR, ROUNDING_UNITS, BudgetUse, budget_use
from hmc_fast.models import HMCNet


class InferenceTruth:
    """Logits of some batches of the timed shape, as many as hold the films of a parity check.

    Eager PyTorch, the yardstick, is called as the candidate is: a batch takes other convolution
    algorithms than a single image, which round differently. Only the fp64 truth takes one image at
    a time, for memory.
    """

    def __init__(self, parameters: HMCNet, batch: Tensor, seed: int = 0) -> None:
        """``batch [B, 3, H, W]`` gives shape, dtype and device; the images are drawn anew."""
        films = max(2, min(PARITY_FILMS, PARITY_PIXELS // (batch.shape[2] * batch.shape[3])))
        generator = torch.Generator(batch.device).manual_seed(seed)
        drawn = torch.randn(
            math.ceil(films / batch.shape[0]),
            *batch.shape,
            generator=generator,
            device=batch.device,
        )
        self.batches = list(drawn.to(batch.dtype))
        self.films = films
        images = torch.cat(self.batches)[:films]
        model = copy.deepcopy(parameters).to(batch.device, batch.dtype)
        with torch.no_grad():
            self.eager = torch.cat([model(batch) for batch in self.batches])[:films]
            model.double()
            self.truth = torch.cat([model(image.double()) for image in torch.split(images, 1)])

    def check(self, call: Callable[[Tensor], Tensor]) -> BudgetUse:
        """The error budget of the operators, on the logits of calls of the shape that is timed."""
        with torch.no_grad():
            logits = torch.cat([call(batch) for batch in self.batches])[: self.films]
        return budget_use("logits", logits, self.eager, self.truth)


class TrainingTruth:
    """The gradient of all parameters for one batch, as one vector.

    Rounding sends single activations across ReLU's kink and batch norm spreads that over the batch,
    so single elements say little; the relative error of the whole gradient is compared with eager
    PyTorch's own at the same precision.
    """

    def __init__(
        self, parameters: HMCNet, batch: tuple[Tensor, Tensor], dtype: torch.dtype
    ) -> None:
        self.batch = batch
        self.truth = self._gradient(parameters, torch.float64)
        self.eager_error = self._relative_error(self._gradient(parameters, dtype))
        self.unit = torch.finfo(dtype).eps

    def check(self, step: TrainingStep) -> BudgetUse:
        """Relative error of the gradient; parameters are as the truth's, before any update."""
        step.gradients(*self.batch)
        gradient = _flat_gradient(step.model)
        error = self._relative_error(gradient)
        allowed = EAGER_ERROR_FACTOR * self.eager_error + ROUNDING_UNITS * self.unit
        finite = bool(gradient.isfinite().all())
        return BudgetUse("gradient", error, allowed, error, allowed, finite)

    def _gradient(self, parameters: HMCNet, dtype: torch.dtype) -> Tensor:
        images, labels = self.batch
        exact = dtype == torch.float64
        model = copy.deepcopy(parameters).to(images.device).train()
        step = TrainingStep(model.double() if exact else model, model, dtype)
        step.gradients(images.double() if exact else images, labels)
        return _flat_gradient(model)

    def _relative_error(self, gradient: Tensor) -> float:
        return float((gradient - self.truth).norm() / self.truth.norm())


def _flat_gradient(model: torch.nn.Module) -> Tensor:
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    return torch.cat([gradient.detach().double().flatten() for gradient in gradients])
