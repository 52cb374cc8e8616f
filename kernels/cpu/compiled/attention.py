"""Calls of the library: which inputs it takes, and how tensors are handed to it."""

import ctypes
from collections.abc import Sequence
from functools import cache

import torch
from torch import Tensor

from hmc_fast.kernels.cpu.compiled.library import CannotCompileError, function

OUT_OF_MEMORY = 2
"""What the library's functions return then."""
LONGEST_STRIDE = 2**20
"""Elements from token to token: the bytes of 256 tokens are a number of 31 bits, as oneDNN asks."""
INSTRUCTIONS = {torch.float32: "avx512_f", torch.bfloat16: "avx512_bf16"}
"""What a processor needs for inputs of a dtype, by PyTorch's name."""


class _Tokens(ctypes.Structure):
    """``Tokens`` of the C++ source: a tensor ``[B, N, H, D]`` whose last axis has no gaps."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        *((name, ctypes.c_int64) for name in ("count", "width")),
        *((name, ctypes.c_int64) for name in ("batch_stride", "token_stride", "head_stride")),
    )

    @classmethod
    def of(cls, x: Tensor) -> "_Tokens":
        _, count, _, width = x.shape
        batch, token, head, _ = x.stride()
        return cls(x.data_ptr(), count, width, batch, token if count > 1 else width, head)


class _Source(ctypes.Structure):
    """``Source`` of the C++ source."""

    _fields_ = (("keys", _Tokens), ("values", _Tokens), ("out", ctypes.c_void_p))


class _Sizes(ctypes.Structure):
    """What both problems of the C++ source begin with."""

    _fields_ = (
        *((name, ctypes.c_int64) for name in ("is_bf16", "batch", "heads", "sources")),
        ("scale", ctypes.c_float),
        ("queries", _Tokens),
    )


class _Problem(_Sizes):
    """``Problem`` of the C++ source."""

    _fields_ = (
        ("source", ctypes.POINTER(_Source)),
        *((name, ctypes.c_void_p) for name in ("lse", "weights")),
    )


class _DifferentiatedSource(ctypes.Structure):
    """``DifferentiatedSource`` of the C++ source."""

    _fields_ = (
        *((name, _Tokens) for name in ("keys", "values", "outs", "d_outs")),
        *((name, ctypes.c_void_p) for name in ("d_keys", "d_values")),
    )


class _BackwardProblem(_Sizes):
    """``BackwardProblem`` of the C++ source."""

    _fields_ = (
        ("source", ctypes.POINTER(_DifferentiatedSource)),
        *((n, ctypes.c_void_p) for n in ("d_queries", "lse", "weights", "d_lse", "d_weights")),
    )


def takes(q: Tensor, ks: Sequence[Tensor], vs: Sequence[Tensor]) -> bool:
    """Whether the library serves these inputs on this machine, forward."""
    tensors = (q, *ks, *vs)
    return (
        q.dtype in INSTRUCTIONS
        and all(x.dtype == q.dtype and x.numel() > 0 for x in tensors)
        and (q.dtype == torch.float32 or q.shape[3] % 2 == 0)  # bf16 is multiplied in pairs
        and bool(torch.backends.mkldnn.enabled)  # the switch of oneDNN, which multiplies
        and why_not(q.dtype) is None
    )


def takes_backward(q: Tensor, ks: Sequence[Tensor], vs: Sequence[Tensor]) -> bool:
    """Whether the library serves these inputs on this machine, backward."""
    pairs = q.dtype == torch.float32 or all(v.shape[3] % 2 == 0 for v in vs)
    return pairs and takes(q, ks, vs)


@cache
def why_not(dtype: torch.dtype) -> str | None:
    """Why inputs of ``dtype`` are not served here; None where they are.

    The first call compiles if need be, and runs a first problem: two keys of equal scores.
    """
    instructions = INSTRUCTIONS.get(dtype)
    if instructions is None:
        return f"it takes no {dtype}"
    if not torch.cpu.get_capabilities().get(instructions):
        return f"the processor lacks {instructions}"
    q = torch.zeros(1, 1, 1, 2, dtype=dtype, device="cpu")
    v = torch.tensor([1.0, 3.0], dtype=dtype, device="cpu").view(1, 2, 1, 1)
    try:
        outs, _, _ = multi_scale_attention(q, [q.expand(1, 2, 1, 2)], [v], 1.0)
    except CannotCompileError as error:
        return str(error)
    return None if outs[0].item() == 2 else f"a first problem gave {outs[0].item()}, not 2"


def multi_scale_attention(
    q: Tensor, ks: Sequence[Tensor], vs: Sequence[Tensor], scale: float
) -> tuple[list[Tensor], Tensor, Tensor]:
    """As :func:`hmc_fast.kernels.reference.multi_scale_attention`, for what :func:`takes`.

    Softmax, statistics and sums are in fp32. Probabilities of bf16 inputs are rounded to bf16
    before they multiply values.
    """
    q, ks, vs = _laid_out(q), [_laid_out(k) for k in ks], [_laid_out(v) for v in vs]
    batch, queries, heads, _ = q.shape
    outs = [q.new_empty(batch, queries, heads, v.shape[3]) for v in vs]
    lse = q.new_empty(batch, heads, queries, dtype=torch.float32)
    weights = lse.new_empty(batch, heads, queries, len(vs))
    sources = (
        _Source(_Tokens.of(k), _Tokens.of(v), out.data_ptr())
        for k, v, out in zip(ks, vs, outs, strict=True)
    )
    problem = _Problem(
        *_sizes(q, ks, scale), (_Source * len(ks))(*sources), lse.data_ptr(), weights.data_ptr()
    )
    _call("hmc_fast_attention", problem)
    return outs, lse, weights


def multi_scale_attention_backward(
    d_outs: Sequence[Tensor],
    d_lse: Tensor,
    d_weights: Tensor,
    q: Tensor,
    ks: Sequence[Tensor],
    vs: Sequence[Tensor],
    outs: Sequence[Tensor],
    lse: Tensor,
    weights: Tensor,
    scale: float,
) -> tuple[Tensor, list[Tensor], list[Tensor]]:
    """As :func:`hmc_fast.kernels.reference.multi_scale_attention_backward`.

    For what :func:`takes_backward`. Exponentials and sums are in fp32. Probabilities of bf16
    inputs, and gradients of their scores, are rounded to bf16 before they multiply.
    """
    dq = q.new_empty(q.shape)
    dks, dvs = ([x.new_empty(x.shape) for x in xs] for xs in (ks, vs))
    q = _laid_out(q)
    # What a pointer alone holds has to live until the call is over.
    tensors = [[_laid_out(x.to(q.dtype)) for x in xs] for xs in (ks, vs, outs, d_outs)]
    statistics = [x.float().contiguous() for x in (lse, weights, d_lse, d_weights)]
    sources = (
        _DifferentiatedSource(*map(_Tokens.of, source), dk.data_ptr(), dv.data_ptr())
        for *source, dk, dv in zip(*tensors, dks, dvs, strict=True)
    )
    problem = _BackwardProblem(
        *_sizes(q, ks, scale),
        (_DifferentiatedSource * len(ks))(*sources),
        dq.data_ptr(),
        *(x.data_ptr() for x in statistics),
    )
    _call("hmc_fast_attention_backward", problem)
    return dq, dks, dvs


def _laid_out(x: Tensor) -> Tensor:
    """``x``, or a copy where oneDNN could not walk from token to token."""
    fits = x.stride(3) == 1 and x.shape[3] <= x.stride(1) <= LONGEST_STRIDE
    return x if fits else x.contiguous()


def _sizes(q: Tensor, ks: Sequence[Tensor], scale: float) -> tuple[object, ...]:
    """The fields of :class:`_Sizes`."""
    batch, _, heads, _ = q.shape
    return int(q.dtype == torch.bfloat16), batch, heads, len(ks), scale, _Tokens.of(q)


def _call(name: str, problem: ctypes.Structure) -> None:
    code = function(name)(ctypes.byref(problem))
    if code == OUT_OF_MEMORY:
        raise MemoryError("attention: no memory for packed tensors")
    if code != 0:
        raise CannotCompileError(f"torch {torch.__version__} has no products for this processor")
