"""The state in which a model is explained, and its own state given back afterwards."""

from collections.abc import Iterator
from contextlib import contextmanager

from torch import nn


@contextmanager
def explaining(model: nn.Module) -> Iterator[None]:
    """Inside, the model is in evaluation mode, its parameters take no gradients, and no ReLU
    overwrites the output of the layer before it, which a hook may hold.
    """
    modes = [(module, module.training) for module in model.modules()]
    trainable = [parameter for parameter in model.parameters() if parameter.requires_grad]
    overwriting = [m for m in model.modules() if isinstance(m, nn.ReLU) and m.inplace]
    try:
        model.eval()
        for parameter in trainable:
            parameter.requires_grad_(False)
        for relu in overwriting:
            relu.inplace = False
        yield
    finally:
        for module, training in modes:
            module.training = training
        for parameter in trainable:
            parameter.requires_grad_(True)
        for relu in overwriting:
            relu.inplace = True
