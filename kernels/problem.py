"""What one call of an operator is: its shapes, dtype and device, without its tensors.

The capability table, the cross-compile gate, tuning, the parity tests and the benchmark share it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class AttentionProblem:
    """``q [B, M, H, Dqk]`` against sources ``k_s [B, N_s, H, Dqk]`` and ``v_s [B, N_s, H, Dv_s]``.

    ``tokens`` and ``v_head_dims`` are ``N_s`` and ``Dv_s`` of each source; ``name`` is for tables.
    """

    batch: int
    queries: int
    heads: int
    tokens: tuple[int, ...]
    v_head_dims: tuple[int, ...]
    qk_head_dim: int
    dtype: torch.dtype = torch.bfloat16
    device: torch.device = torch.device("cpu")  # noqa: RUF009  # immutable
    name: str = ""

    @classmethod
    def of(cls, q: Tensor, ks: Sequence[Tensor], vs: Sequence[Tensor]) -> "AttentionProblem":
        """The problem of these tensors, one of ``ks`` and of ``vs`` for each source."""
        batch, queries, heads, qk_head_dim = q.shape
        tokens, v_head_dims = tuple(k.shape[1] for k in ks), tuple(v.shape[3] for v in vs)
        return cls(batch, queries, heads, tokens, v_head_dims, qk_head_dim, q.dtype, q.device)

    @property
    def sources(self) -> int:
        return len(self.v_head_dims)

    @property
    def scale(self) -> float:
        """The default factor on the scores, ``1/√Dqk``."""
        return float(self.qk_head_dim**-0.5)

    def tensors(
        self, generator: torch.Generator | None = None
    ) -> tuple[Tensor, list[Tensor], list[Tensor]]:
        """Standard normal ``q``, ``ks`` and ``vs``; on the meta device they have no memory."""

        def draw(tokens: int, width: int) -> Tensor:
            shape = (self.batch, tokens, self.heads, width)
            return torch.randn(shape, generator=generator, device=self.device, dtype=self.dtype)

        q = draw(self.queries, self.qk_head_dim)
        ks = [draw(n, self.qk_head_dim) for n in self.tokens]
        return q, ks, [draw(n, d) for n, d in zip(self.tokens, self.v_head_dims, strict=True)]


@dataclass(frozen=True)
class ProjectionProblem:
    """A gated projection, which has no heads: of ``sources`` attended tensors."""

    sources: int
    dtype: torch.dtype
    device: torch.device

    @classmethod
    def of(cls, attended: Sequence[Tensor]) -> "ProjectionProblem":
        return cls(len(attended), attended[0].dtype, attended[0].device)
