"""PyTorch's scaled dot product attention, one backend at a time."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from hmc_fast.bench.cases import Case, Inputs
from hmc_fast.bench.layouts import AttendWithLse, bind_concatenated, bind_merged
from hmc_fast.bench.peers import BoundCall, Peer, Variant

MAX_EQUAL_HEAD_DIM = 256
"""Widest head of the flash and cuDNN kernels."""


def attend_by(backend: SDPBackend, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """``scaled_dot_product_attention`` by ``backend`` alone, ``[B, H, N, D]``.

    Raises ``RuntimeError`` where it cannot run; PyTorch puts its reasons into warnings.
    """
    with sdpa_kernel(backend):
        return scaled_dot_product_attention(q, k, v, scale=scale)


def _flash_with_lse(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    aten = torch.ops.aten
    if q.device.type == "cpu":
        out, lse = aten._scaled_dot_product_flash_attention_for_cpu(q, k, v, scale=scale)
        return out, lse
    out, lse, *_ = aten._scaled_dot_product_flash_attention(q, k, v, scale=scale)
    return out, lse


def _efficient_with_lse(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    out, lse, *_ = torch.ops.aten._scaled_dot_product_efficient_attention(
        q, k, v, None, True, scale=scale
    )
    return out, lse[..., : q.shape[2]]  # its rows are padded to a multiple of 32


def _cudnn_with_lse(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    out, lse, *_ = torch.ops.aten._scaled_dot_product_cudnn_attention(
        q, k, v, None, True, scale=scale
    )
    return out, lse.reshape(q.shape[:3])  # some releases keep a last dimension of 1


def _variants(sdpa: "SdpaBackend", case: Case) -> list[Variant]:
    several = len(case.tokens) > 1
    variants = []
    for equal in sdpa.layouts:
        padded = ", head dims padded to equal ones" if equal else ""
        if several and sdpa.with_lse is not None:
            # PyTorch's operators that return lse cannot be differentiated through it.
            merged = partial(_merged, sdpa.with_lse, equal)
            variants.append(Variant(f"per source, merged by lse{padded}", merged, ("forward",)))
        one_call = not equal or sum(case.v_head_dims) <= MAX_EQUAL_HEAD_DIM
        calls = "one call" if one_call else "a call per source"
        how = f"sources concatenated, {calls}{padded}" if several else f"one call{padded}"
        variants.append(Variant(how, partial(_concatenated, sdpa.backend, equal, one_call)))
    return variants


def _merged(attend: AttendWithLse, equal: bool, case: Case, inputs: Inputs) -> BoundCall:
    return bind_merged(attend, case, inputs, equal_head_dims=equal)


def _concatenated(
    backend: SDPBackend, equal: bool, one_call: bool, case: Case, inputs: Inputs
) -> BoundCall:
    attend = partial(attend_by, backend)
    return bind_concatenated(attend, case, inputs, equal_head_dims=equal, one_call=one_call)


@dataclass(frozen=True)
class SdpaBackend:
    """``layouts``: whether head dims of q, k and v are padded to equal ones, in order to try."""

    name: str
    backend: SDPBackend
    with_lse: AttendWithLse | None
    layouts: tuple[bool, ...]
    on_cpu: bool = False

    def why_not(self, case: Case, dtype: torch.dtype, device: torch.device) -> str | None:
        """What is known without trying; what PyTorch refuses is found by trying."""
        if device.type == "cpu" and not self.on_cpu:
            return "PyTorch has this kernel for GPUs only"
        return None


SDPA_BACKENDS = (
    SdpaBackend("sdpa_flash", SDPBackend.FLASH_ATTENTION, _flash_with_lse, (True,), on_cpu=True),
    SdpaBackend("sdpa_cudnn", SDPBackend.CUDNN_ATTENTION, _cudnn_with_lse, (False, True)),
    SdpaBackend(
        "sdpa_efficient", SDPBackend.EFFICIENT_ATTENTION, _efficient_with_lse, (False, True)
    ),
    SdpaBackend("sdpa_math", SDPBackend.MATH, None, (False,), on_cpu=True),
)
SDPA_PEERS = tuple(
    Peer(sdpa.name, partial(_variants, sdpa), sdpa.why_not) for sdpa in SDPA_BACKENDS
)
