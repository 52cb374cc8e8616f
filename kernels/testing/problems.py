"""Problems drawn from the capability table: odd, prime, lopsided, strided and extreme ones."""

import random
from dataclasses import dataclass

import torch
from torch import Tensor

from hmc_fast.kernels.capability import MAX_QK_HEAD_DIM, MIN_HEAD_DIM

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
    """Shapes and content of one problem: ``sources`` are pairs of tokens ``N_s`` and ``Dv_s``."""

    seed: int
    kind: str
    batch: int
    queries: int
    heads: int
    qk_head_dim: int
    sources: tuple[tuple[int, int], ...]

    def __str__(self) -> str:
        sources = "+".join(f"{n}x{d}" for n, d in self.sources)
        return (
            f"{self.seed}:{self.kind},B{self.batch},M{self.queries},H{self.heads},"
            f"Dqk{self.qk_head_dim},{sources}"
        )

    @property
    def scale(self) -> float:
        return float(self.qk_head_dim**-0.5)

    @property
    def values(self) -> int:
        """Numbers in the values of all sources."""
        return self.batch * self.heads * sum(n * d for n, d in self.sources)

    @property
    def products(self) -> int:
        """Multiplications of a forward pass."""
        per_query = sum(n * (self.qk_head_dim + d) for n, d in self.sources)
        return self.batch * self.heads * self.queries * per_query

    def tensors(
        self, dtype: torch.dtype, device: torch.device | str = "cpu"
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """``q [B, M, H, Dqk]``, keys ``[B, N_s, H, Dqk]`` and values ``[B, N_s, H, Dv_s]``."""
        generator = torch.Generator().manual_seed(self.seed)

        def draw(tokens: int, width: int) -> Tensor:
            if self.kind != "strided":
                drawn = torch.randn(self.batch, tokens, self.heads, width, generator=generator)
                return drawn.to(device, dtype)
            spread = (self.batch, 2 * tokens, self.heads + 1, width + 8)
            drawn = torch.randn(spread, generator=generator).to(device, dtype)
            return drawn[:, ::2, 1:, 8:]

        q = draw(self.queries, self.qk_head_dim)
        ks = [draw(n, self.qk_head_dim) for n, _ in self.sources]
        vs = [draw(n, d) for n, d in self.sources]
        if self.kind == "large logits":
            # Unit vectors along and against each other: logits of ±80 and everything between.
            q = q / q.norm(dim=-1, keepdim=True) * (80 / self.scale) ** 0.5
            ks = [k / k.norm(dim=-1, keepdim=True) * (80 / self.scale) ** 0.5 for k in ks]
            ks[0][:, 0] = q[:, 0]
            ks[0][:, -1] = -q[:, 0]
        if self.kind == "constant keys":
            ks = [torch.full_like(k, 0.5) for k in ks]
        return q, ks, vs


def draw_problems(seed: int, count: int) -> list[DrawnProblem]:
    """``count`` problems, the same for the same seed; every kind comes in turn."""
    rng = random.Random(seed)
    problems: list[DrawnProblem] = []
    while len(problems) < count:
        kind = KINDS[len(problems) % len(KINDS)]
        sources = rng.choice((1, 1, 2, 3))
        problem = DrawnProblem(
            seed=seed * 1_000_000 + len(problems),
            kind=kind,
            batch=rng.choice((1, 2)),
            queries=rng.choice((1, 3, 5)) if kind == "few queries" else rng.choice(TOKEN_COUNTS),
            heads=rng.randint(1, 8),
            qk_head_dim=rng.choice(QK_HEAD_DIMS),
            sources=tuple(
                (1 if kind == "one key" else rng.choice(TOKEN_COUNTS), rng.choice(V_HEAD_DIMS))
                for _ in range(1 if kind == "one key" else sources)
            ),
        )
        heads = problem.batch * problem.heads * len(problem.sources)
        if problem.products <= MAX_PRODUCTS and problem.values <= MAX_VALUES and heads <= MAX_HEADS:
            problems.append(problem)
    return problems
