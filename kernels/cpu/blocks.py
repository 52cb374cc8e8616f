"""How the work is cut into blocks that stay in a core's caches, and the memory blocks use."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor


@dataclass(frozen=True)
class BlockShape:
    """Queries and keys of one block of scores, at most."""

    queries: int
    keys: int

    def heads(self, queries: int, keys: int) -> int:
        """How many heads share a block where there are only so many queries and keys."""
        scores_per_head = min(queries, self.queries) * min(keys, self.keys)
        return max(1, self.queries * self.keys // scores_per_head)


FORWARD = BlockShape(queries=1024, keys=256)
BACKWARD = BlockShape(queries=1024, keys=256)


@dataclass(frozen=True)
class Group:
    """Heads of one film that are computed together."""

    film: int
    heads: slice

    def tokens(self, x: Tensor) -> Tensor:
        """The view ``[G, M, D]`` of ``x [B, M, H, D]``."""
        return x[self.film, :, self.heads].transpose(0, 1)


def head_groups(q: Tensor, keys: int, block: BlockShape) -> Iterator[Group]:
    """All films and heads of ``q [B, M, H, D]``, against ``keys`` keys at most per source."""
    batch, queries, heads, _ = q.shape
    together = block.heads(queries, keys)
    for film in range(batch):
        for span in spans(heads, together):
            yield Group(film, span)


def spans(length: int, step: int) -> Iterator[slice]:
    """``0 … length`` in slices of ``step``, the last one shorter."""
    for start in range(0, length, step):
        yield slice(start, min(start + step, length))


class Scratch:
    """Memory for one block after the other: fresh pages would cost as much as softmax."""

    def __init__(self) -> None:
        self._memory = torch.empty(0)

    def product(self, a: Tensor, b: Tensor) -> Tensor:
        """``a b [G, R, C]`` of fp32 ``a [G, R, K]`` and ``b [G, K, C]``, until the next call."""
        shape = (*a.shape[:2], b.shape[2])
        size = prod(shape)
        if self._memory.numel() < size:
            self._memory = torch.empty(size, dtype=torch.float32)
        return torch.bmm(a, b, out=self._memory[:size].view(shape))


class ProductSum:
    """``Σ a b`` over blocks in fp32, for a ``target [G, R, D]`` of any dtype and outer strides."""

    def __init__(self, target: Tensor) -> None:
        self._target = target
        self._empty = True
        in_place = target.dtype == torch.float32
        self.value = target if in_place else torch.empty(target.shape, dtype=torch.float32)

    def add(self, a: Tensor, b: Tensor, scale: float = 1.0) -> None:
        """Add ``scale · a b``."""
        beta = 0.0 if self._empty else 1.0
        torch.baddbmm(self.value, a, b, beta=beta, alpha=scale, out=self.value)
        self._empty = False

    def store(self) -> None:
        """Bring the sum into the target."""
        if self.value is not self._target:
            self._target.copy_(self.value)
