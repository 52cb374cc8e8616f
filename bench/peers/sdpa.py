"""PyTorch's scaled dot product attention, one of its kernels at a time."""

from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.nn.functional import scaled_dot_product_attention

from hmc_fast.bench.cases import Case
from hmc_fast.bench.peers.layouts import (
    AttendOnceWithLse,
    attend_sources,
    bind_concatenated,
    bind_merged,
)
from hmc_fast.bench.peers.peer import (
    ModuleVariant,
    Peer,
    Variant,
    compiled,
    why_no_attention,
    why_no_compiler,
)

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


@dataclass(frozen=True)
class _Kernel:
    """One kernel: ``layouts`` says whether head dims are padded to equal ones, in order to try."""

    name: str
    colour: str
    help: str
    backend: SDPBackend
    with_lse: AttendOnceWithLse | None
    layouts: tuple[bool, ...]
    on_cpu: bool = False

    def peer(self) -> Peer:
        attends = [
            attend_sources(partial(attend_by, self.backend), equal_head_dims=equal)
            for equal in self.layouts
        ]
        return Peer(
            self.name,
            "attention",
            self.colour,
            self.help,
            operators=self._variants,
            blocks=tuple(
                ModuleVariant("torch.compile of the block", attend=attend, build=compiled)
                for attend in attends
            ),
            why_not=self._why_not,
        )

    def _why_not(self, case: Case, dtype: torch.dtype, device: torch.device) -> str | None:
        """What is known without trying; what PyTorch refuses shows in trying."""
        if device.type == "cpu" and not self.on_cpu:
            return "PyTorch has this kernel for GPUs only"
        return why_no_compiler(case, dtype, device) if case.kind == "block" else None

    def _variants(self, case: Case) -> list[Variant]:
        several = case.attention.sources > 1
        variants = []
        for equal in self.layouts:
            padded = ", head dims padded to equal ones" if equal else ""
            if several and self.with_lse is not None:
                # PyTorch's operators that return lse cannot be differentiated through it.
                merged = partial(bind_merged, self.with_lse, equal_head_dims=equal)
                variants.append(Variant(f"per source, merged by lse{padded}", merged, ("forward",)))
            one_call = not equal or sum(case.attention.v_head_dims) <= MAX_EQUAL_HEAD_DIM
            calls = "one call" if one_call else "a call per source"
            name = f"sources concatenated, {calls}{padded}" if several else f"one call{padded}"
            bind = partial(
                bind_concatenated,
                partial(attend_by, self.backend),
                equal_head_dims=equal,
                one_call=one_call,
            )
            variants.append(Variant(name, bind))
        return variants


SDPA_KERNELS = tuple(
    kernel.peer()
    for kernel in (
        _Kernel(
            "sdpa_flash",
            "#d55e00",
            "PyTorch's FlashAttention",
            SDPBackend.FLASH_ATTENTION,
            _flash_with_lse,
            (True,),
            on_cpu=True,
        ),
        _Kernel(
            "sdpa_cudnn",
            "#8a3d00",
            "PyTorch's cuDNN attention",
            SDPBackend.CUDNN_ATTENTION,
            _cudnn_with_lse,
            (False, True),
        ),
        _Kernel(
            "sdpa_efficient",
            "#e69f00",
            "PyTorch's memory-efficient attention",
            SDPBackend.EFFICIENT_ATTENTION,
            _efficient_with_lse,
            (False, True),
        ),
        _Kernel(
            "sdpa_math",
            "#f0e442",
            "PyTorch's attention by plain operators",
            SDPBackend.MATH,
            None,
            (False,),
            on_cpu=True,
        ),
    )
)


def _any_kernel(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    return scaled_dot_product_attention(q, k, v, scale=scale)


def _why_no_model(case: Case, dtype: torch.dtype, device: torch.device) -> str | None:
    return why_no_attention(case) or why_no_compiler(case, dtype, device)


SDPA = Peer(
    "sdpa",
    "attention",
    "#d55e00",
    "torch.compile around PyTorch's attention, by the kernel it picks",
    models=tuple(
        ModuleVariant(
            f"torch.compile around SDPA, {'padded' if equal else 'native'} head dims",
            attend=attend_sources(_any_kernel, equal_head_dims=equal),
            build=compiled,
        )
        for equal in (True, False)
    ),
    why_not=_why_no_model,
    slow_on_cpu=("model",),
)
