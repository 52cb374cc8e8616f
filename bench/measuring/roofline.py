"""What an operator or a block must do at least: operations, bytes, and the floor they set.

A floor assumes that every operation runs at the measured matrix-product rate and every input is
read and every output written once at the measured copy bandwidth; nothing is faster.
"""

from dataclasses import dataclass
from typing import Literal

import torch

from hmc_fast.bench.cases import Case, Task
from hmc_fast.kernels import AttentionProblem

_LSE_BYTES = 4


@dataclass(frozen=True)
class Work:
    """Floating-point operations and the fewest bytes through device memory."""

    flops: int
    bytes: int

    def floor_ms(self, flops_per_s: float, bytes_per_s: float) -> float:
        """The larger of the two times."""
        return max(self.flops / flops_per_s, self.bytes / bytes_per_s) * 1e3

    def bound(self, flops_per_s: float, bytes_per_s: float) -> Literal["compute", "memory"]:
        """The larger of the two."""
        compute = self.flops / flops_per_s >= self.bytes / bytes_per_s
        return "compute" if compute else "memory"


def work_of(case: Case, task: Task, dtype: torch.dtype) -> Work:
    """Forward, backward or both, without what a peer adds to it.

    Forward is two matrix products per source, ``Q Kᵀ`` and ``P V``. Backward is five: the scores
    once more (they are not kept), ``dP = dO Vᵀ``, ``dV``, ``dQ`` and ``dK``.
    """
    if case.kind == "block":
        return _block_work(case, task, dtype)
    p = case.attention
    pairs = [2 * p.batch * p.heads * p.queries * n for n in p.tokens]
    by_source = list(zip(pairs, p.v_head_dims, strict=True))
    forward = sum(pair * (p.qk_head_dim + width) for pair, width in by_source)
    backward = sum(pair * (3 * p.qk_head_dim + 2 * width) for pair, width in by_source)
    q, kv, out, lse = _sizes(p, dtype)
    forward_bytes = q + kv + out + lse
    backward_bytes = 2 * (q + kv) + 2 * out + lse
    return _choose(task, Work(forward, forward_bytes), Work(backward, backward_bytes))


def _sizes(p: AttentionProblem, dtype: torch.dtype) -> tuple[int, int, int, int]:
    """Bytes of q, of all keys and values, of the outputs and of the log-sum-exp."""
    row = p.batch * p.heads * dtype.itemsize
    q = row * p.queries * p.qk_head_dim
    kv = sum(
        row * n * (p.qk_head_dim + width) for n, width in zip(p.tokens, p.v_head_dims, strict=True)
    )
    out = row * p.queries * sum(p.v_head_dims)
    return q, kv, out, p.batch * p.heads * p.queries * _LSE_BYTES


def _block_work(case: Case, task: Task, dtype: torch.dtype) -> Work:
    """The attention of a block, its projections to q and k, and the output projection.

    At best a block reads its feature map once and writes it once (and their gradients backward);
    the weights are counted once.
    """
    p = case.attention
    rows = p.batch * p.queries
    weights = case.channels * (2 * p.heads * p.qk_head_dim + case.channels)
    projections = 2 * rows * weights
    pair = 2 * p.batch * p.heads * p.queries * p.tokens[0]
    qk, v = p.qk_head_dim, p.v_head_dims[0]
    feature_map = rows * case.channels * dtype.itemsize
    weight_bytes = weights * dtype.itemsize
    forward = Work(pair * (qk + v) + projections, 2 * feature_map + weight_bytes)
    backward = Work(pair * (3 * qk + 2 * v) + 2 * projections, 3 * feature_map + 2 * weight_bytes)
    return _choose(task, forward, backward)


def _choose(task: Task, forward: Work, backward: Work) -> Work:
    if task == "forward":
        return forward
    if task == "backward":
        return backward
    return Work(forward.flops + backward.flops, forward.bytes + backward.bytes)
