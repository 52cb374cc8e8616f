"""Convolutions on a CPU whose weights are laid out once.

oneDNN multiplies weights in blocks of a layout of its own. PyTorch's convolution makes that layout,
and under autocast the cast, anew in every call.
"""

from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import Tensor, nn

FLOATS = {torch.float32, torch.bfloat16, torch.float16}
"""Dtypes that autocast casts, and of which oneDNN has convolutions."""


class PackedConv2d(nn.Conv2d):
    """A convolution that remembers its weights as oneDNN wants them, for one size of images.

    Images ``[B, C, H, W]`` and the result are those of ``torch.nn.Conv2d``. Where packed weights
    do not serve (another device, dtype or memory format than channels-last, autograd, a trace), it
    is one. Changed parameters are packed again; what is written through ``.data`` is not seen.
    """

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__(
            conv.in_channels,
            conv.out_channels,
            conv.kernel_size,  # type: ignore[arg-type]  # of any length to its annotation
            conv.stride,  # type: ignore[arg-type]
            conv.padding,  # type: ignore[arg-type]
            conv.dilation,  # type: ignore[arg-type]
            conv.groups,
            bias=conv.bias is not None,
            device="meta",
        )
        self.weight, self.bias = conv.weight, conv.bias
        self.train(conv.training)
        self._packed: tuple[object, Tensor, Tensor | None] | None = None

    def forward(self, x: Tensor) -> Tensor:
        """``[B, C_out, H_out, W_out]``, in the dtype of autocast where that is on."""
        dtype = self._dtype()
        if not self._suits_onednn(x, dtype):
            return super().forward(x)
        weight, bias = self._weights(x.shape, dtype)
        result: Tensor = torch.ops.mkldnn._convolution_pointwise(
            x.to(dtype), weight, bias, *self._geometry(), "none", [], ""
        )
        return result

    def _dtype(self) -> torch.dtype:
        if torch.is_autocast_enabled("cpu"):
            return torch.get_autocast_dtype("cpu")
        return self.weight.dtype

    def _suits_onednn(self, x: Tensor, dtype: torch.dtype) -> bool:
        """What plain convolution refuses is left to it, for its message."""
        return (
            not torch.compiler.is_compiling()
            and x.device.type == self.weight.device.type == "cpu"
            and not (torch.is_grad_enabled() and (x.requires_grad or self.weight.requires_grad))
            and {x.dtype, self.weight.dtype} <= FLOATS
            and (x.dtype == self.weight.dtype or torch.is_autocast_enabled("cpu"))
            and x.ndim == 4
            and x.shape[0] > 0
            and x.shape[1] == self.in_channels
            and (_channels_last(x) or _channels_last(self.weight))
            and self._covers(x.shape[2:])
            and _supported(dtype)
        )

    def _covers(self, size: Sequence[int]) -> bool:
        """Whether padded images of this height and width are as large as the kernel."""
        padding = cast(tuple[int, int], self.padding)
        return all(
            size[i] + 2 * padding[i] > self.dilation[i] * (self.kernel_size[i] - 1) for i in (0, 1)
        )

    def _weights(self, shape: torch.Size, dtype: torch.dtype) -> tuple[Tensor, Tensor | None]:
        """Packed weights and the bias; the best layout depends on the images' height and width."""
        key = (dtype, shape[1:], _state(self.weight), _state(self.bias))
        packed = self._packed
        if packed is None or packed[0] != key:
            weight = torch.ops.aten.mkldnn_reorder_conv2d_weight(
                self.weight.detach().to(dtype).to_mkldnn(), *self._geometry(), list(shape)
            )
            bias = None if self.bias is None else self.bias.detach().to(dtype)
            packed = self._packed = key, weight, bias
        return packed[1:]

    def _geometry(self) -> tuple[Any, ...]:
        return self.padding, self.stride, self.dilation, self.groups

    def __getstate__(self) -> dict[str, Any]:
        """Without what can be packed again: a copy or a pickle could not hold it."""
        return {**self.__dict__, "_packed": None}


def _state(parameter: Tensor | None) -> tuple[int, int] | None:
    """Changes with a parameter, as far as PyTorch counts: not for one made in inference mode."""
    if parameter is None:
        return None
    return parameter.data_ptr(), 0 if parameter.is_inference() else parameter._version


def _channels_last(x: Tensor) -> bool:
    """The result of packed weights always is, that of plain convolution if either operand is."""
    return x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()


def _supported(dtype: torch.dtype) -> bool:
    """Whether oneDNN convolves ``dtype`` on this processor."""
    available = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
    if not (available and torch.backends.mkldnn.enabled):
        return False
    if dtype == torch.bfloat16:
        return bool(torch.ops.mkldnn._is_mkldnn_bf16_supported())
    if dtype == torch.float16:
        return bool(torch.ops.mkldnn._is_mkldnn_fp16_supported())
    return dtype == torch.float32


def pack(model: nn.Module) -> None:
    """Replace the convolutions of ``model`` by packed ones with the same parameters, in place."""
    for name, module in list(model.named_modules()):
        if name and type(module) is nn.Conv2d and _packable(module):
            model.set_submodule(name, PackedConv2d(module))


def _packable(conv: nn.Conv2d) -> bool:
    """Whether the padding is as many zeros as the numbers say."""
    return conv.padding_mode == "zeros" and not isinstance(conv.padding, str)
