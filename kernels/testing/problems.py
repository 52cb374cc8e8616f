"""Problems drawn from the capability table: odd, prime, lopsided, strided and extreme ones."""

import random
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hmc_fast.kernels.capability import MAX_QK_HEAD_DIM, MIN_HEAD_DIM
from hmc_fast.kernels.problem import AttentionProblem

TOKEN_COUNTS = (1, 2, 3, 7, 13, 16, 31, 49, 64, 97, 127, 128, 131, 196, 211, 257, 300)
QK_HEAD_DIMS = (MIN_HEAD_DIM, 24, 31, 48, 64, 80, 128, 192, MAX_QK_HEAD_DIM)
V_HEAD_DIMS = (MIN_HEAD_DIM, 17, 40, 64, 96, 128, 200, 256, 300, 512, 1024)
KINDS = ("normal", "strided", "large logits", "constant keys", "one key", "few queries")
MAX_PRODUCTS = 1e7
MAX_VALUES = 3.2e5
MAX_HEADS = 24
"""Limits on one drawn problem, so that Triton's interpreter takes seconds at most."""


@dataclass(frozen=True)
class DrawnProblem:
    """A problem with the content of its tensors: a kind of :data:`KINDS` and a seed."""

    seed: int
    kind: str
    shape: AttentionProblem

    def __str__(self) -> str:
        p = self.shape
        sources = "+".join(f"{n}x{d}" for n, d in zip(p.tokens, p.v_head_dims, strict=True))
        return (
            f"{self.seed}:{self.kind},B{p.batch},M{p.queries},H{p.heads},Dqk{p.qk_head_dim},"
            f"{sources}"
        )

    def tensors(
        self, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """``q [B, M, H, Dqk]``, keys ``[B, N_s, H, Dqk]`` and values ``[B, N_s, H, Dv_s]``."""
        strided = self.kind == "strided"
        generator = torch.Generator().manual_seed(self.seed)
        drawn = (_spread(self.shape) if strided else self.shape).tensors(generator)

        def view(x: Tensor) -> Tensor:
            x = x.to(device, dtype)
            return x[:, ::2, 1:, 8:] if strided else x

        q, ks, vs = view(drawn[0]), [view(k) for k in drawn[1]], [view(v) for v in drawn[2]]
        if self.kind == "large logits":
            # Unit vectors along and against each other: logits of ±80 and everything between.
            norm = (80 / self.shape.scale) ** 0.5
            q, *ks = (x / x.norm(dim=-1, keepdim=True) * norm for x in (q, *ks))
            ks[0][:, 0] = q[:, 0]
            ks[0][:, -1] = -q[:, 0]
        if self.kind == "constant keys":
            ks = [torch.full_like(k, 0.5) for k in ks]
        return q, ks, vs


def _spread(shape: AttentionProblem) -> AttentionProblem:
    """Tensors of which every other token, all heads but one and all columns but 8 are taken."""
    return replace(
        shape,
        queries=2 * shape.queries,
        heads=shape.heads + 1,
        tokens=tuple(2 * n for n in shape.tokens),
        qk_head_dim=shape.qk_head_dim + 8,
        v_head_dims=tuple(d + 8 for d in shape.v_head_dims),
    )


def draw_problems(seed: int, count: int) -> list[DrawnProblem]:
    """``count`` problems, the same for the same seed; every kind comes in turn."""
    rng = random.Random(seed)
    problems: list[DrawnProblem] = []
    while len(problems) < count:
        kind = KINDS[len(problems) % len(KINDS)]
        shape = _draw_shape(rng, kind)
        if _is_small(shape):
            problems.append(DrawnProblem(seed * 1_000_000 + len(problems), kind, shape))
    return problems


def _draw_shape(rng: random.Random, kind: str) -> AttentionProblem:
    sources = rng.choice((1, 1, 2, 3))
    batch = rng.choice((1, 2))
    queries = rng.choice((1, 3, 5)) if kind == "few queries" else rng.choice(TOKEN_COUNTS)
    heads, qk_head_dim = rng.randint(1, 8), rng.choice(QK_HEAD_DIMS)
    pairs = [
        (1 if kind == "one key" else rng.choice(TOKEN_COUNTS), rng.choice(V_HEAD_DIMS))
        for _ in range(1 if kind == "one key" else sources)
    ]
    tokens, v_head_dims = (tuple(sides) for sides in zip(*pairs, strict=True))
    return AttentionProblem(batch, queries, heads, tokens, v_head_dims, qk_head_dim, torch.float32)


def _is_small(shape: AttentionProblem) -> bool:
    heads = shape.batch * shape.heads
    pairs = list(zip(shape.tokens, shape.v_head_dims, strict=True))
    values = heads * sum(n * d for n, d in pairs)
    products = heads * shape.queries * sum(n * (shape.qk_head_dim + d) for n, d in pairs)
    return products <= MAX_PRODUCTS and values <= MAX_VALUES and heads * shape.sources <= MAX_HEADS
