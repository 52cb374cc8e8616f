"""How the work is cut into blocks that stay in a core's caches, and the memory blocks use.

PyTorch multiplies fp32 by Intel's MKL, which leaves half of the vector width of AMD's processors
unused. oneDNN, which PyTorch brings for layers, uses all of it. There, large products of one head
are asked of it.
"""

import math
import threading
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod

import torch
from torch import Tensor

from hmc_fast.kernels.cpu.precision import is_wide_amd

VECTOR = 16
"""Numbers in a vector register: blocks are whole multiples of it where they can be."""
LOG2_E = 1 / math.log(2)
"""Scores are in units of ln 2, and exponentials powers of two. PyTorch asks Intel's library for
``exp``, which on AMD takes three times as long as PyTorch's own ``exp2``."""
FLOOR, NEAR = -87.0, -29.0
"""Exponents below ``FLOOR`` are raised to it in rows with one above ``NEAR``: 2⁻⁵⁸ of that row's
largest each. A processor takes many times as long to multiply numbers below 1e-38."""
SCORES_AT_ONCE = 2**19
"""Heads share a block up to so many scores, 2 MiB in fp32: a call of PyTorch costs microseconds."""


LEAST_OF_ONEDNN = 2**16
"""Scores of a head from which on oneDNN is asked: below, heads share a call of MKL."""


@dataclass(frozen=True)
class BlockShape:
    """Queries and keys of one block of scores, at most."""

    queries: int
    keys: int

    def heads(self, queries: int, keys: int) -> int:
        """How many heads share a block where there are only so many queries and keys.

        One a thread at least: a thread then has products of its own, and waits for none.
        """
        scores_per_head = min(queries, self.queries) * min(keys, self.keys)
        return max(torch.get_num_threads(), SCORES_AT_ONCE // scores_per_head)


# Measured at N = 784 and 4,096, d_qk 64, d_v 256, on two idle cores with 2 MiB of L2 each, among
# 256 to 2,048 queries, 512 to 1,024 keys and one or two heads a block: the best or within a point
# of it. That was with MKL, in fp32; for oneDNN and for bf16 they have not been chosen anew.
FORWARD = BlockShape(queries=1024, keys=512)
BACKWARD = BlockShape(queries=1024, keys=512)


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
    together = 1 if takes_onednn(queries, keys) else block.heads(queries, keys)
    for film in range(batch):
        for span in spans(heads, together):
            yield Group(film, span)


def takes_onednn(queries: int, keys: int) -> bool:
    """Whether products of one head with so many tokens are asked of oneDNN."""
    return queries * keys >= LEAST_OF_ONEDNN and is_wide_amd()


def spans(length: int, most: int) -> list[slice]:
    """``0 … length`` in as few slices of at most ``most`` as it takes, about equally long."""
    count = -(-length // most)
    step = min(most, -(-length // (count * VECTOR)) * VECTOR)
    return [slice(start, min(start + step, length)) for start in range(0, length, step)]


class _Workspace(threading.local):
    """Memory for one block after the other, kept by each thread from call to call.

    Fresh pages would cost a small problem more than its softmax does.
    """

    def __init__(self) -> None:
        self._kept: dict[tuple[str, torch.dtype], Tensor] = {}

    def take(self, name: str, *shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """Contiguous ``[shape]`` of undefined content, until ``name`` and ``dtype`` come again."""
        size = prod(shape)
        kept = self._kept.get((name, dtype))
        if kept is None or kept.numel() < size:
            with torch.inference_mode(False):  # its tensors could not be written to outside
                kept = self._kept[name, dtype] = torch.empty(size, dtype=dtype)
        return kept[:size].view(shape)


_workspace = _Workspace()


def product(name: str, a: Tensor, b: Tensor, scale: float = 1.0) -> Tensor:
    """``scale · a b [G, R, C]`` of fp32 ``a [G, R, K]`` and ``b [G, K, C]``.

    It stays until ``name`` comes again.
    """
    if _suits_onednn(a, b):
        result = onednn_linear(a[0], b[0].T).unsqueeze(0)
    else:
        result = _workspace.take(name, *a.shape[:2], b.shape[2])
        torch.bmm(a, b, out=result)
    return result if scale == 1.0 else result.mul_(scale)  # MKL would round ``scale · a``


def onednn_linear(x: Tensor, weight: Tensor) -> Tensor:
    """``x weightᵀ`` in fp32 by oneDNN; fast where both lie in memory without gaps."""
    result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, None, "none", [], "")
    return result


def _suits_onednn(a: Tensor, b: Tensor) -> bool:
    """Whether fp32 ``a [1, R, K]`` and ``b [1, K, C]`` lie as oneDNN wants them, and it is faster.

    With other strides it takes a hundred times as long.
    """
    return (
        is_wide_amd()
        and a.shape[0] == 1
        and a.dtype == torch.float32
        and a[0].is_contiguous()
        and (b[0].is_contiguous() or b[0].T.is_contiguous())
    )


def reach(q: Tensor, keys: Sequence[Tensor], scale: float) -> float:
    """No score of ``q [G, M, D]`` and ``keys[s] [G, N_s, D]`` is larger, by Cauchy and Schwarz."""
    longest, *others = (
        float(torch.linalg.vector_norm(x, dim=2, dtype=torch.float32).max()) for x in (q, *keys)
    )
    return abs(scale) * longest * max(others)


def exponentials(scores: Tensor, maximum: Tensor | None = None) -> Tensor:
    """``2 ** scores [G, R, C]`` in place, where scores may lie far below zero.

    ``maximum [G, R, 1]`` is that of each row, zero or less but for rounding. None stands for rows
    that only count beside others whose largest is about zero.
    """
    if maximum is None:
        return scores.clamp_min_(FLOOR).exp2_()
    lowest = torch.where(maximum > NEAR, FLOOR, -math.inf)
    return torch.maximum(scores, lowest, out=scores).exp2_()


def query_factor(scale: float, *, exact: bool) -> float:
    """What queries are multiplied by before keys are; ``scale`` over it is left for the product.

    It is ``scale``, so that nothing is left, unless that is zero or queries have to stay ``exact``:
    for products that are rounded to bf16, or for scores so large that rounding would show. Then it
    is a power of two, and 1 to 2 times it is left.
    """
    if scale and not exact:
        return scale
    mantissa, exponent = math.frexp(scale)
    return math.ldexp(1.0, exponent - 1) if mantissa else 1.0


def full_precision(name: str, x: Tensor) -> Tensor:
    """``x`` where it is fp32, else a copy that is, until ``name`` comes again."""
    return x if x.dtype == torch.float32 else _workspace.take(name, *x.shape).copy_(x)


def dense(x: Tensor) -> Tensor:
    """``x`` in fp32 and without gaps."""
    return x.float().contiguous()


def rounded(name: str, x: Tensor) -> Tensor:
    """``x`` in bf16, until ``name`` comes again."""
    return _workspace.take(name, *x.shape, dtype=torch.bfloat16).copy_(x)


def row_products(a: Tensor, b: Tensor) -> Tensor:
    """``Σ_d a b [G, M]`` of ``a`` and ``b [G, M, D]`` of any dtype, in fp32."""
    heads, rows, width = a.shape
    sums = torch.empty(heads, rows, dtype=torch.float32)
    for span in spans(rows, max(1, SCORES_AT_ONCE // (heads * width))):
        x = full_precision("left", a[:, span])
        y = full_precision("right", b[:, span])
        torch.mul(x, y, out=(both := _workspace.take("scores", *x.shape)))
        torch.sum(both, dim=2, out=sums[:, span])
    return sums


class ProductSum:
    """``Σ a b`` over blocks in fp32, for a ``target [G, R, D]`` of any dtype and outer strides.

    Operands are both fp32, or both bf16: the product of a block is then rounded to it.
    """

    def __init__(self, target: Tensor) -> None:
        self._target = target
        self._empty = True
        in_place = target.dtype == torch.float32
        self.value = target if in_place else torch.empty(target.shape, dtype=torch.float32)

    def add(self, a: Tensor, b: Tensor) -> None:
        """Add ``a b``."""
        if _suits_onednn(a, b):
            self._add(onednn_linear(a[0], b[0].T))
        elif _suits_onednn(b.mT, a.mT):
            self._add(onednn_linear(b[0].T, a[0]).T)
        elif a.dtype == torch.float32:
            beta = 0.0 if self._empty else 1.0
            torch.baddbmm(self.value, a, b, beta=beta, out=self.value)
        else:
            partial = _workspace.take("partial", *self.value.shape, dtype=a.dtype)
            self._add(torch.bmm(a, b, out=partial))
        self._empty = False

    def _add(self, partial: Tensor) -> None:
        if self._empty:
            self.value.copy_(partial)
        else:
            self.value.add_(partial)

    def store(self, scale: float = 1.0) -> None:
        """Bring ``scale`` times the sum into the target."""
        if scale != 1.0:
            self.value.mul_(scale)
        if self.value is not self._target:
            self._target.copy_(self.value)
