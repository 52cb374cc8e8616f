"""The attention problems of the model itself, by stage and image size: what gates and tunes."""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

STRIDES = {"c3": 8, "c4": 16, "c5": 32}
CHANNELS = {"c3": 512, "c4": 1024, "c5": 2048}
SELF_ATTENTION_HEAD_DIM = 256
CROSS_ATTENTION_HEADS = 4
IMAGE_SIZES = (224, 512, 1024)


@dataclass(frozen=True)
class AttentionProblem:
    """One attention call: ``sources`` are pairs of tokens ``N_s`` and value head dims ``Dv_s``."""

    name: str
    batch: int
    queries: int
    heads: int
    sources: tuple[tuple[int, int], ...]
    qk_head_dim: int = 64
    dtype: torch.dtype = torch.bfloat16

    def tensors(self, device: torch.device) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Random ``q``, ``ks`` and ``vs``, as :func:`hmc_fast.kernels.multi_scale_attention`."""

        def draw(tokens: int, width: int) -> Tensor:
            shape = (self.batch, tokens, self.heads, width)
            return torch.randn(shape, device=device, dtype=self.dtype)

        q = draw(self.queries, self.qk_head_dim)
        ks = [draw(n, self.qk_head_dim) for n, _ in self.sources]
        return q, ks, [draw(n, d) for n, d in self.sources]


def self_attention_problem(stage: str, size: int, batch: int) -> AttentionProblem:
    """Hierarchical self-attention after ``stage`` of an image of ``size``² pixels."""
    tokens = (size // STRIDES[stage]) ** 2
    heads = CHANNELS[stage] // SELF_ATTENTION_HEAD_DIM
    sources = ((tokens, SELF_ATTENTION_HEAD_DIM),)
    return AttentionProblem(f"hsa_{stage}@{size}", batch, tokens, heads, sources)


def cross_attention_problem(size: int, batch: int) -> AttentionProblem:
    """Multi-scale cross-attention of C5 to C3 and C4 of an image of ``size``² pixels."""
    sources = tuple(
        ((size // STRIDES[stage]) ** 2, CHANNELS[stage] // CROSS_ATTENTION_HEADS)
        for stage in ("c3", "c4")
    )
    queries = (size // STRIDES["c5"]) ** 2
    return AttentionProblem(f"msca_c5@{size}", batch, queries, CROSS_ATTENTION_HEADS, sources)


def model_problems(batch: int = 8) -> Iterator[AttentionProblem]:
    """Every attention call of ``hmc_net`` at every image size of :data:`IMAGE_SIZES`."""
    for size in IMAGE_SIZES:
        for stage in STRIDES:
            yield self_attention_problem(stage, size, batch)
        yield cross_attention_problem(size, batch)
