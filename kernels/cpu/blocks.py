"""How the work is cut into blocks that stay in a core's caches."""

from collections.abc import Iterator
from dataclasses import dataclass

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


FORWARD = BlockShape(queries=128, keys=2048)
BACKWARD = BlockShape(queries=512, keys=512)


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
