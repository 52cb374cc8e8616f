"""Named cases: an attention operator or a whole block, of one stage at one image size and batch.

``hsa_c3@1024x8`` is the self-attention of stage C3 for eight images of 1024²; ``msca_c5`` is the
cross-attention of C5 to C3 and C4, and ``hsa_block_c3`` the whole self-attention block with its
projections.
"""

import re
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from hmc_fast.errors import UserError
from hmc_fast.kernels.geometry import HSA_VALUE_HEAD_DIM, MSCA_HEADS, QK_HEAD_DIM
from hmc_fast.models.hmc_net import STRIDE

STAGE_CHANNELS = {"c2": 256, "c3": 512, "c4": 1024, "c5": 2048}
STAGE_STRIDES = {"c2": 4, "c3": 8, "c4": 16, "c5": 32}
Kind = Literal["operator", "block"]
_NAME = re.compile(r"(hsa_block|hsa|msca)_(c[2-5])@(\d+)(?:x(\d+))?")
_MSCA_SOURCES = ("c3", "c4")
_EXAMPLES = "hsa_c3@1024x8, msca_c5@224 or hsa_block_c3@512x4 (stage @ image size x batch)"


@dataclass(frozen=True)
class Case:
    """One attention problem: ``q [B, M, H, 64]`` against sources ``k [B, N_s, H, 64]``.

    ``tokens`` and ``v_head_dims`` are ``N_s`` and ``Dv_s`` of each source.
    """

    name: str
    kind: Kind
    batch: int
    heads: int
    queries: int
    tokens: tuple[int, ...]
    v_head_dims: tuple[int, ...]
    channels: int
    qk_head_dim: int = QK_HEAD_DIM

    def inputs(self, dtype: torch.dtype, device: torch.device, seed: int) -> "Inputs":
        """Random tensors of this case in ``dtype``: a standard normal draw."""
        generator = torch.Generator(device).manual_seed(seed)

        def draw(*shape: int) -> Tensor:
            return torch.randn(shape, generator=generator, device=device).to(dtype)

        if self.kind == "block":
            side = round(self.queries**0.5)
            maps = [draw(self.batch, self.channels, side, side) for _ in range(2)]
            x, d_y = (m.contiguous(memory_format=torch.channels_last) for m in maps)
            return Inputs(x, [], [], [d_y])
        batch, heads, width = self.batch, self.heads, self.qk_head_dim
        return Inputs(
            q=draw(batch, self.queries, heads, width),
            ks=[draw(batch, n, heads, width) for n in self.tokens],
            vs=[
                draw(batch, n, heads, own)
                for n, own in zip(self.tokens, self.v_head_dims, strict=True)
            ],
            d_outs=[draw(batch, self.queries, heads, own) for own in self.v_head_dims],
        )


@dataclass(frozen=True)
class Inputs:
    """Tensors of one call, and the cotangents ``d_outs`` of its results.

    For an operator ``q [B, M, H, Dqk]``, ``ks[s] [B, N_s, H, Dqk]``, ``vs[s] [B, N_s, H, Dv_s]``
    and ``d_outs[s] [B, M, H, Dv_s]``; for a block ``q`` is its feature map ``[B, C, H, W]``,
    channels-last, and there are neither keys nor values.
    """

    q: Tensor
    ks: list[Tensor]
    vs: list[Tensor]
    d_outs: list[Tensor]

    @property
    def leaves(self) -> list[Tensor]:
        return [self.q, *self.ks, *self.vs]


def parse_case(text: str) -> Case:
    """The case of a name. Raises :class:`UserError` for a name that does not fit the pattern."""
    found = _NAME.fullmatch(text)
    if found is None:
        raise UserError(f"unknown case {text!r}; cases look like {_EXAMPLES}")
    operator, stage, size, batch = found[1], found[2], int(found[3]), int(found[4] or 1)
    if size < STRIDE or size % STRIDE:
        raise UserError(
            f"case {text!r}: the image size must be a multiple of {STRIDE}, at least {STRIDE}"
        )
    if batch < 1:
        raise UserError(f"case {text!r}: the batch must be at least 1")
    if operator == "msca" and stage != "c5":
        raise UserError(f"case {text!r}: cross-attention is defined for c5 alone: msca_c5@{size}")
    channels = STAGE_CHANNELS[stage]
    sources = _MSCA_SOURCES if operator == "msca" else (stage,)
    heads = MSCA_HEADS if operator == "msca" else max(1, channels // HSA_VALUE_HEAD_DIM)
    return Case(
        name=f"{operator}_{stage}@{size}x{batch}",
        kind="block" if operator == "hsa_block" else "operator",
        batch=batch,
        heads=heads,
        queries=_tokens(stage, size),
        tokens=tuple(_tokens(source, size) for source in sources),
        v_head_dims=tuple(STAGE_CHANNELS[source] // heads for source in sources),
        channels=channels,
    )


def _tokens(stage: str, size: int) -> int:
    return (size // STAGE_STRIDES[stage]) ** 2


CASE_PRESETS: dict[str, tuple[str, ...]] = {
    "cpu": (
        "hsa_c4@224x1",
        "msca_c5@224x1",
        "hsa_c3@224x1",
        "hsa_block_c5@224x1",
    ),
    "gpu": (
        "hsa_c3@1024x8",
        "hsa_block_c3@1024x8",
        "msca_c5@1024x8",
        "hsa_c4@1024x8",
        "hsa_c5@1024x8",
        "hsa_c3@224x1",
        "hsa_c4@224x1",
        "hsa_c5@224x1",
        "msca_c5@224x1",
        "hsa_c4@512x16",
        "hsa_c3@224x64",
        "msca_c5@224x64",
    ),
}
"""Most important first: where a time budget runs out, the last ones are left."""
