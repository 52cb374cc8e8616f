"""A model and the way it is called to infer."""

from torch import Tensor, nn

from hmc_fast.devices import autocast, precision_dtype, return_free_memory
from hmc_fast.inference.folding import folded
from hmc_fast.inference.packing import pack
from hmc_fast.kernels.backend import check_backend_name
from hmc_fast.models import attention_blocks


class PreparedModel(nn.Module):
    """What :func:`prepare` returns: images ``[B, 3, H, W]`` to what the model makes of them.

    ``model`` is the folded copy, of the class of the given model: hooks and gradients at its
    feature maps work as ever unless it is compiled.
    """

    def __init__(self, model: nn.Module, precision: str, compile: bool) -> None:
        super().__init__()
        self.model = model
        self.precision = precision
        if compile:
            model.compile(fullgraph=True, dynamic=False, options={"freezing": True})

    def forward(self, images: Tensor) -> Tensor:
        """Logits at the precision that was asked for, whatever autocast is around the call."""
        with autocast(images.device, self.precision):
            logits: Tensor = self.model(images)
        return logits


def prepare(
    model: nn.Module, *, precision: str = "fp32", compile: bool = False, backend: str | None = None
) -> PreparedModel:
    """A copy of ``model`` to infer with; the model itself stays as it is.

    Args:
        model: of the registry, or a module around one.
        precision: of :data:`hmc_fast.devices.PRECISIONS`, by autocast.
        compile: by ``torch.compile`` with parameters frozen. It takes long for each shape of images
            and pays for many films alone, so never unasked. Call the model without gradients.
        backend: of the attention, as in :func:`hmc_fast.create_model`; None for the model's.

    Raises:
        UserError: an unknown precision.
        hmc_fast.kernels.backend.UnknownBackendError: an unknown backend.
    """
    precision_dtype(precision)
    prepared = folded(model)
    if backend is not None:
        check_backend_name(backend, "backend")
        for block in attention_blocks(prepared):
            block.backend = backend
    if not compile:
        pack(prepared)
    return_free_memory()
    return PreparedModel(prepared, precision, compile)
