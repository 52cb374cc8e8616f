"""One source in bf16 by PyTorch's own flash kernel, where the processor has tile instructions.

ATen's kernel for CPUs multiplies bf16 blocks as they are, with no conversion in between, which
blocks of plain PyTorch cannot. It wants heads of one width, so narrower ones are padded with zeros,
which is exact.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad


def takes_flash(q: Tensor, k: Tensor, v: Tensor) -> bool:
    """Whether :func:`attention` is the fastest here: all in bf16, on a processor with Intel AMX."""
    return (
        all(x.dtype == torch.bfloat16 for x in (q, k, v))
        and q.shape[1] > 0
        and torch.cpu._is_amx_tile_supported()
    )


def attention(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    """As :func:`hmc_fast.kernels.reference.attention`, for what :func:`takes_flash`.

    Probabilities are rounded to bf16 before they multiply values; softmax and sums are in fp32.
    """
    width = max(q.shape[3], v.shape[3])
    out, lse = torch.ops.aten._scaled_dot_product_flash_attention_for_cpu(
        *(pad(x, (0, width - x.shape[3])).transpose(1, 2) for x in (q, k, v)), scale=scale
    )
    return out.transpose(1, 2)[..., : v.shape[3]].contiguous(), lse.contiguous()
