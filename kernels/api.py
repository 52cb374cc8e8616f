"""The public operators: arguments are checked here, then handed to the registered ops."""

import math
from collections.abc import Sequence

from torch import Tensor

from hmc_fast.kernels import ops, reference
from hmc_fast.kernels.backend import resolve_backend
from hmc_fast.kernels.problem import AttentionProblem, ProjectionProblem

LAYOUTS = ("bnhd", "bhnd")
SUSPICIOUS_HEADS = 64
"""More heads than this, and than tokens, are taken for tokens in another layout."""


def attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    scale: float | None = None,
    backend: str = "auto",
    *,
    layout: str | None = None,
) -> tuple[Tensor, Tensor]:
    """``softmax(scale · q kᵀ) v`` of tensors ``[B, N, H, D]``; ``Dv`` may differ from ``Dqk``.

    PyTorch's ``scaled_dot_product_attention`` has heads before tokens: pass ``layout="bhnd"`` for
    its tensors. There is no mask, no causality and no dropout on any backend.

    Args:
        q: queries ``[B, M, H, Dqk]``.
        k: keys ``[B, N, H, Dqk]``.
        v: values ``[B, N, H, Dv]``. All three share one floating dtype and one device; outer
            strides are free, the innermost is 1, so a channels-last feature map enters as it is.
        scale: factor on the scores, ``1/√Dqk`` by default.
        backend: ``"auto"``, ``"reference"``, ``"cpu"`` or ``"triton"``.
        layout: ``"bnhd"`` as above, or ``"bhnd"`` where tensors, and ``out``, have heads before
            tokens. None is ``"bnhd"``, and refuses shapes that look like the other one.

    Returns:
        ``out [B, M, H, Dv]`` in the dtype of ``q``, and the log-sum-exp of the scaled scores
        ``lse [B, H, M]`` (natural logarithm; fp32, fp64 for fp64 inputs). Both are differentiable
        once.

    Raises:
        TypeError: an argument is not a floating tensor, or the dtypes differ.
        ValueError: shapes, strides or devices do not fit, or ``backend`` or ``layout`` is unknown.
        BackendUnavailableError: an explicit backend cannot run this call; every reason is listed.
    """
    q, k, v = (_tokens_first(x, layout) for x in (q, k, v))
    _check_arguments(q, [k], [v], ["k"], ["v"])
    _check_layout(layout, q, [k])
    choice = resolve_backend(backend, AttentionProblem.of(q, [k], [v]))
    out, lse = ops.attention_forward(q, k, v, _scale(scale, q), choice.name)
    return _tokens_first(out, layout), lse


def multi_scale_attention(
    q: Tensor,
    ks: Sequence[Tensor],
    vs: Sequence[Tensor],
    scale: float | None = None,
    backend: str = "auto",
    *,
    layout: str | None = None,
) -> tuple[list[Tensor], Tensor, Tensor]:
    """Attention of ``[B, N, H, D]`` tensors, one softmax over the tokens of several sources.

    Args:
        q: queries ``[B, M, H, Dqk]``.
        ks: keys of each source, ``[B, N_s, H, Dqk]``.
        vs: values of each source, ``[B, N_s, H, Dv_s]``; sources may differ in ``N_s`` and
            ``Dv_s``. Dtype, device and strides as in :func:`attention`.
        scale: factor on the scores, ``1/√Dqk`` by default.
        backend: ``"auto"``, ``"reference"``, ``"cpu"`` or ``"triton"``.
        layout: as in :func:`attention`.

    Returns:
        ``outs[s] = P_s V_s [B, M, H, Dv_s]`` under the union softmax, ``lse [B, H, M]`` over the
        union, and ``weights [B, H, M, S]``: the share of the attention that each source received
        (sums to one over ``S``). All are differentiable once.

    Raises:
        As :func:`attention`; ``ValueError`` also where the lists are empty or differ in length.
    """
    q, ks, vs = _tokens_first(q, layout), list(ks), list(vs)
    ks, vs = ([_tokens_first(x, layout) for x in xs] for xs in (ks, vs))
    if not ks or len(ks) != len(vs):
        raise ValueError(
            f"ks and vs need one tensor per source each, got {len(ks)} and {len(vs)} tensors"
        )
    names = range(len(ks))
    _check_arguments(q, ks, vs, [f"ks[{s}]" for s in names], [f"vs[{s}]" for s in names])
    _check_layout(layout, q, ks)
    choice = resolve_backend(backend, AttentionProblem.of(q, ks, vs))
    outs, lse, weights = ops.multi_scale_attention_forward(q, ks, vs, _scale(scale, q), choice.name)
    return [_tokens_first(out, layout) for out in outs], lse, weights


def gated_projection(
    x: Tensor,
    attended: Sequence[Tensor],
    weight: Tensor,
    bias: Tensor,
    gamma: Tensor,
    backend: str = "auto",
) -> Tensor:
    """``x + γ ⊙ (concat(attended) weightᵀ + bias)``: the end of both attention blocks.

    Args:
        x: features ``[..., C]``.
        attended: what each source gave, ``[..., K_s]`` with the leading dimensions of ``x``; never
            concatenated by the fused kernel.
        weight: ``[C, Σ K_s]``, in the dtype of ``attended``.
        bias: ``[C]``.
        gamma: gate of each channel, ``[C]``.
        backend: ``"auto"``, ``"reference"``, ``"cpu"`` or ``"triton"``.

    Returns:
        ``[..., C]`` in the dtype of ``x``, contiguous for contiguous ``x``. Differentiable once by
        the fused kernel.

    Raises:
        TypeError: ``weight`` and ``attended`` differ in dtype, or an argument is not floating.
        ValueError: shapes or devices do not fit, or ``backend`` is unknown.
        BackendUnavailableError: as :func:`attention`.
    """
    attended = list(attended)
    _check_projection(x, attended, weight, bias, gamma)
    choice = resolve_backend(backend, ProjectionProblem.of(attended))
    if choice.name != "triton":
        return reference.gated_projection(x, attended, weight, bias, gamma)
    y: Tensor = ops.gated_projection_forward(x, attended, weight, bias, gamma)
    return y


def _scale(scale: float | None, q: Tensor) -> float:
    return 1.0 / math.sqrt(q.shape[-1]) if scale is None else float(scale)


def _tokens_first(x: Tensor, layout: str | None) -> Tensor:
    """``x`` with heads and tokens exchanged where the layout has heads first: its own inverse."""
    if layout is not None and layout not in LAYOUTS:
        raise ValueError(f"layout is {layout!r}; it must be one of {', '.join(LAYOUTS)}")
    swap = layout == "bhnd" and isinstance(x, Tensor) and x.dim() == 4
    return x.transpose(1, 2) if swap else x


def _check_layout(layout: str | None, q: Tensor, ks: list[Tensor]) -> None:
    tokens, heads = max(x.shape[1] for x in (q, *ks)), q.shape[2]
    if layout is None and heads > max(tokens, SUSPICIOUS_HEADS):
        raise ValueError(
            f"q has {q.shape[1]} tokens and {heads} heads, which looks like the layout of "
            'scaled_dot_product_attention; pass layout="bhnd" for heads before tokens, or '
            'layout="bnhd" if this is meant'
        )


def _check_arguments(
    q: Tensor, ks: list[Tensor], vs: list[Tensor], k_names: list[str], v_names: list[str]
) -> None:
    _check_tensor("q", q)
    for k, v, k_name, v_name in zip(ks, vs, k_names, v_names, strict=True):
        for name, tensor in ((k_name, k), (v_name, v)):
            _check_tensor(name, tensor)
            if tensor.dtype != q.dtype:
                raise TypeError(f"{name} is {tensor.dtype} but q is {q.dtype}; cast one of them")
            if tensor.device != q.device:
                raise ValueError(f"{name} is on {tensor.device} but q is on {q.device}; move one")
            if tensor.shape[0] != q.shape[0] or tensor.shape[2] != q.shape[2]:
                raise ValueError(
                    f"{name} has batch {tensor.shape[0]} and {tensor.shape[2]} heads, "
                    f"q has batch {q.shape[0]} and {q.shape[2]} heads; they must agree"
                )
        if k.shape[3] != q.shape[3]:
            raise ValueError(f"{k_name} has head dim {k.shape[3]}, q has {q.shape[3]}")
        if v.shape[1] != k.shape[1]:
            raise ValueError(f"{v_name} has {v.shape[1]} tokens, {k_name} has {k.shape[1]}")


def _check_tensor(name: str, tensor: Tensor) -> None:
    if not isinstance(tensor, Tensor) or not tensor.dtype.is_floating_point:
        kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
        raise TypeError(f"{name} must be a floating-point tensor, got {kind}")
    if tensor.dim() != 4:
        raise ValueError(
            f"{name} must have 4 dimensions [batch, tokens, heads, head dim], "
            f"got shape {tuple(tensor.shape)}"
        )
    if 0 in tensor.shape:
        raise ValueError(f"{name} has an empty dimension: shape {tuple(tensor.shape)}")
    if tensor.stride(3) != 1 and tensor.shape[3] != 1:
        raise ValueError(
            f"{name} has inner stride {tensor.stride(3)}; the head dimension must be contiguous "
            f"(stride 1): pass {name}.contiguous() or a channels-last feature map"
        )


def _check_projection(
    x: Tensor, attended: list[Tensor], weight: Tensor, bias: Tensor, gamma: Tensor
) -> None:
    if not attended:
        raise ValueError("attended needs at least one tensor")
    named = {f"attended[{s}]": tensor for s, tensor in enumerate(attended)}
    for name, tensor in {"x": x, **named, "weight": weight, "bias": bias, "gamma": gamma}.items():
        if not tensor.dtype.is_floating_point:
            raise TypeError(f"{name} must be a floating-point tensor, got {tensor.dtype}")
        if tensor.device != x.device:
            raise ValueError(f"{name} is on {tensor.device} but x is on {x.device}; move one")
        if 0 in tensor.shape:
            raise ValueError(f"{name} has an empty dimension: shape {tuple(tensor.shape)}")
    for name, tensor in named.items():
        if tensor.dtype != weight.dtype:
            raise TypeError(f"{name} is {tensor.dtype} but weight is {weight.dtype}; cast one")
        if tensor.shape[:-1] != x.shape[:-1]:
            raise ValueError(
                f"{name} has shape {tuple(tensor.shape)}, x {tuple(x.shape)}; they must agree in "
                "all dimensions but the last"
            )
    channels, inner = x.shape[-1], sum(tensor.shape[-1] for tensor in attended)
    for name, tensor, expected in (
        ("weight", weight, (channels, inner)),
        ("bias", bias, (channels,)),
        ("gamma", gamma, (channels,)),
    ):
        if tuple(tensor.shape) != expected:
            raise ValueError(f"{name} has shape {tuple(tensor.shape)}, it must be {expected}")
