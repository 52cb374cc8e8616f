"""Blocked forward pass: the scores of a block are formed, exponentiated in place and used at once.

Exponentials are taken against a reference logit of each query, on which softmax does not depend. It
is zero, and no subtraction is paid, until exponentials leave a safe range. Then the block is formed
again, its maximum becomes the reference and what was summed before is rescaled. So a block needs
neither its maximum nor a rescale as long as logits keep within some twenty of each other. Where the
lengths of queries and keys allow logits beyond sixty, each block takes its maximum first.
"""

from collections.abc import Sequence
from math import log2

import torch
from torch import Tensor

from hmc_fast.kernels.cpu.blocks import (
    FLOOR,
    FORWARD,
    LOG2_E,
    ProductSum,
    dense,
    exponentials,
    full_precision,
    product,
    query_factor,
    reach,
    rounded,
    spans,
    takes_onednn,
)
from hmc_fast.kernels.cpu.precision import has_tiles, rounds_products

SUM_LIMIT = 2.0**32
"""Exponentials of a block add up to at most this, and those of the first to at least its inverse:
far from overflow in fp32, also when they multiply values."""


def attend(
    q: Tensor,
    keys: Sequence[Tensor],
    values: Sequence[Tensor],
    scale: float,
    outs: Sequence[Tensor],
    lse: Tensor,
    weights: Tensor,
) -> None:
    """Attention of ``q [G, M, Dqk]`` over all sources, written to ``outs``, ``lse``, ``weights``.

    ``keys[s] [G, N_s, Dqk]``, ``values[s] [G, N_s, Dv_s]`` and ``outs[s] [G, M, Dv_s]`` may be of
    any dtype; ``lse [G, M]`` and ``weights [G, M, S]`` are fp32.
    """
    rounds = rounds_products(q, keys)
    scale *= LOG2_E
    wide = reach(q, keys, scale) > -FLOOR
    factor = query_factor(scale, exact=wide or (rounds and has_tiles()))
    if takes_onednn(q.shape[1], max(key.shape[1] for key in keys)):
        keys = [dense(key) for key in keys]
        values = values if rounds else [dense(value) for value in values]
    for span in spans(q.shape[1], FORWARD.queries):
        queries = (q[:, span].float() * factor).contiguous()
        rows = _Rows(queries, scale / factor, [out[:, span] for out in outs], wide=wide)
        for s, (key, value) in enumerate(zip(keys, values, strict=True)):
            for columns in spans(key.shape[1], FORWARD.keys):
                k = full_precision("keys", key[:, columns])
                v = value[:, columns]
                rows.add(s, k, v if rounds else full_precision("values", v))
        rows.store(lse[:, span], weights[:, span])


class _Rows:
    """What is known so far of ``R`` queries of ``G`` heads."""

    def __init__(
        self, queries: Tensor, scale: float, outs: Sequence[Tensor], *, wide: bool
    ) -> None:
        self._wide = wide
        """Whether scores may lie so far apart that exponents are cut."""
        self._queries = queries
        self._scale = scale
        self._reference: Tensor | None = None
        """``[G, R, 1]``; None stands for zero."""
        self._sums: list[Tensor] = []
        """Of each source so far, ``Σ 2 ** (score - reference)``, ``[G, R, 1]``."""
        self._products = [ProductSum(out) for out in outs]
        """Of each source, ``Σ 2 ** (score - reference) v``, ``[G, R, Dv_s]``."""

    def add(self, s: int, keys: Tensor, values: Tensor) -> None:
        """Attend to a block of source ``s``: ``keys [G, C, Dqk]`` and ``values [G, C, Dv]``.

        Values are fp32, or bf16 to be multiplied in it.
        """
        probabilities, sums = self._wide_block(keys) if self._wide else self._block(keys)
        if values.dtype == torch.bfloat16:
            probabilities = rounded("probabilities", probabilities)
        if s == len(self._sums):
            self._sums.append(sums)
        else:
            self._sums[s] += sums
        self._products[s].add(probabilities, values)

    def _block(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        """Exponentials ``[G, R, C]`` and their sums, at first without a look at the scores."""
        values = self._scores(keys).exp2_()
        sums = values.sum(dim=2, keepdim=True)
        if not self._in_range(sums):
            values = self._scores(keys)
            values -= self._move_reference(values.amax(dim=2, keepdim=True))
            sums = values.exp2_().sum(dim=2, keepdim=True)
        return values, sums

    def _wide_block(self, keys: Tensor) -> tuple[Tensor, Tensor]:
        """As :meth:`_block`, by the maximum of the scores, see :func:`exponentials`."""
        scores = self._scores(keys)
        maximum = scores.amax(dim=2, keepdim=True)
        if not self._sums or not maximum.max().item() <= log2(SUM_LIMIT):
            growth = self._move_reference(maximum.clone())
            scores -= growth
            maximum -= growth
        alone = len(self._products) == 1
        values = exponentials(scores, None if alone else maximum)
        return values, values.sum(dim=2, keepdim=True)

    def _in_range(self, sums: Tensor) -> bool:
        """Whether later sums can be added; what is not a number stays so with any reference."""
        if self._sums:
            return not sums.max().item() > SUM_LIMIT
        least, most = (x.item() for x in sums.aminmax())
        return not (least < 1 / SUM_LIMIT or most > SUM_LIMIT)

    def _scores(self, keys: Tensor) -> Tensor:
        scores = product("scores", self._queries, keys.transpose(1, 2), self._scale)
        return scores if self._reference is None else scores.sub_(self._reference)

    def _move_reference(self, maximum: Tensor) -> Tensor:
        """Add ``maximum [G, R, 1]`` to the reference, once there are sums only where it grows.

        Returns what was added.
        """
        growth = maximum.clamp_min_(0) if self._sums else maximum
        self._reference = growth if self._reference is None else self._reference + growth
        factor = growth.neg().exp2_()
        for s, partial in enumerate(self._sums):
            partial *= factor
            self._products[s].value.mul_(factor)
        return growth

    def store(self, lse: Tensor, weights: Tensor) -> None:
        """Write the outs, ``lse [G, R]`` and ``weights [G, R, S]``."""
        sums = torch.cat(self._sums, dim=2)
        total = sums.sum(dim=2, keepdim=True)
        torch.div(sums, total, out=weights)
        for weighted in self._products:
            weighted.value.div_(total)
            weighted.store()
        total.log_()
        if self._reference is not None:
            total += self._reference / LOG2_E
        lse.copy_(total.squeeze(2))
