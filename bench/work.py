"""What a case must do at least: operations, bytes, and the floor they set.

A floor assumes that every operation runs at the measured matrix-product rate and every input is
read and every output written once at the measured copy bandwidth; no implementation is faster.
"""

from dataclasses import dataclass
from typing import Literal

import torch

from hmc_fast.bench.cases import Case
from hmc_fast.errors import UserError

Pass = Literal["forward", "backward", "both"]
PASSES: tuple[Pass, ...] = ("forward", "backward", "both")
_LSE_BYTES = 4


def check_pass(name: str) -> Pass:
    """``name`` as a pass. Raises :class:`UserError` for an unknown one."""
    for known in PASSES:
        if name == known:
            return known
    raise UserError(f"unknown pass {name!r}; choose of {', '.join(PASSES)}")


@dataclass(frozen=True)
class Work:
    """Floating-point operations and the fewest bytes through device memory."""

    flops: int
    bytes: int

    def floor_ms(self, flops_per_s: float, bytes_per_s: float) -> float:
        """The larger of the two times."""
        return max(self.flops / flops_per_s, self.bytes / bytes_per_s) * 1e3

    def bound(self, flops_per_s: float, bytes_per_s: float) -> Literal["compute", "memory"]:
        """Which of the two is larger."""
        compute = self.flops / flops_per_s >= self.bytes / bytes_per_s
        return "compute" if compute else "memory"


def work_of(case: Case, which: Pass, dtype: torch.dtype) -> Work:
    """Forward, backward or both, without what an implementation adds to it.

    Forward is two matrix products per source, ``Q Kᵀ`` and ``P V``. Backward is five: the scores
    once more (they are not kept), ``dP = dO Vᵀ``, ``dV``, ``dQ`` and ``dK``.
    """
    if case.kind == "block":
        return _block_work(case, which, dtype)
    pairs = [2 * case.batch * case.heads * case.queries * n for n in case.tokens]
    by_source = list(zip(pairs, case.v_head_dims, strict=True))
    forward = sum(pair * (case.qk_head_dim + width) for pair, width in by_source)
    backward = sum(pair * (3 * case.qk_head_dim + 2 * width) for pair, width in by_source)
    q, kv, out, lse = _sizes(case, dtype)
    forward_bytes = q + kv + out + lse
    backward_bytes = 2 * (q + kv) + 2 * out + lse
    return _choose(which, Work(forward, forward_bytes), Work(backward, backward_bytes))


def _sizes(case: Case, dtype: torch.dtype) -> tuple[int, int, int, int]:
    """Bytes of q, of all keys and values, of the outputs and of the log-sum-exp."""
    row = case.batch * case.heads * dtype.itemsize
    q = row * case.queries * case.qk_head_dim
    kv = sum(
        row * n * (case.qk_head_dim + width)
        for n, width in zip(case.tokens, case.v_head_dims, strict=True)
    )
    out = row * case.queries * sum(case.v_head_dims)
    return q, kv, out, case.batch * case.heads * case.queries * _LSE_BYTES


def _block_work(case: Case, which: Pass, dtype: torch.dtype) -> Work:
    """The attention of a block, its projections to q and k, and the output projection.

    At best a block reads its feature map once and writes it once (and their gradients backward);
    the weights are counted once.
    """
    rows = case.batch * case.queries
    weights = case.channels * (2 * case.heads * case.qk_head_dim + case.channels)
    projections = 2 * rows * weights
    pair = 2 * case.batch * case.heads * case.queries * case.tokens[0]
    qk, v = case.qk_head_dim, case.v_head_dims[0]
    feature_map = rows * case.channels * dtype.itemsize
    weight_bytes = weights * dtype.itemsize
    forward = Work(pair * (qk + v) + projections, 2 * feature_map + weight_bytes)
    backward = Work(pair * (3 * qk + 2 * v) + 2 * projections, 3 * feature_map + 2 * weight_bytes)
    return _choose(which, forward, backward)


def _choose(which: Pass, forward: Work, backward: Work) -> Work:
    if which == "forward":
        return forward
    if which == "backward":
        return backward
    return Work(forward.flops + backward.flops, forward.bytes + backward.bytes)
