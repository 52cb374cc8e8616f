"""The two attention blocks of HMC-Net, on 4-D feature maps ``[B, C, H, W]``.

Values are the raw features: with one head this is the non-local block (Wang et al., CVPR 2018) with
the value projection moved behind the attention. ``γ`` starts at zero, so a pretrained trunk is
intact at the first step.
"""

from collections.abc import Callable, Iterator, Sequence

import torch
from torch import Tensor, nn

from hmc_fast.kernels import attention, gated_projection, multi_scale_attention
from hmc_fast.kernels.geometry import MSCA_HEADS, QK_HEAD_DIM, hsa_heads

Attend = Callable[
    [Tensor, Sequence[Tensor], Sequence[Tensor]], tuple[Sequence[Tensor], Tensor | None]
]
"""``(q [B, M, H, Dqk], ks, vs)`` to ``outs[s] [B, M, H, Dv_s]`` under the union softmax, and the
share of each source ``[B, H, M, S]`` or None; scores are scaled by ``1/√Dqk``."""


class HierarchicalSelfAttention(nn.Module):
    """Self-attention in a stage: ``Y = X + γ ⊙ (concat_h softmax(Q_h K_hᵀ/√64) X_h · Wo + bo)``.

    Args:
        channels: ``C``; ``C/256`` heads (at least one), each with values of width ``C/heads``.
        backend: as in :func:`hmc_fast.kernels.attention`.

    ``attend`` may be set to another attention function, in place of the operators; it is no part
    of the state dict.
    """

    attend: Attend | None = None

    def __init__(self, channels: int, backend: str = "auto") -> None:
        super().__init__()
        self.heads = hsa_heads(channels)
        self.value_head_dims = (channels // self.heads,)
        self.backend = backend
        self.qk_proj = nn.Linear(channels, 2 * self.heads * QK_HEAD_DIM)
        self.out_proj = nn.Linear(channels, channels)
        self.gamma = nn.Parameter(torch.zeros(channels))
        _init_projections(self)

    def forward(self, x: Tensor) -> Tensor:
        """``x [B, C, H, W]`` to the same shape."""
        tokens = _as_tokens(x)
        qk = _split_heads(self.qk_proj(tokens), 2 * self.heads)
        q, k = qk[:, :, : self.heads], qk[:, :, self.heads :]
        values = _split_heads(tokens, self.heads).to(q.dtype)
        if self.attend is not None:
            outs, _ = self.attend(q, [k], [values])
        else:
            outs = [attention(q, k, values, backend=self.backend)[0]]
        return _project(self, x, tokens, outs)


class MultiScaleCrossAttention(nn.Module):
    """Cross-attention from one stage to several others under one softmax over all their tokens.

    ``Y = X_t + γ ⊙ (concat_s (P_s X_s) · Wo + bo)`` with 4 heads of query width 64.

    Args:
        target_channels: channels of the querying stage.
        source_channels: channels of each source stage, each a multiple of 4.
        backend: as in :func:`hmc_fast.kernels.multi_scale_attention`.

    ``attend`` as in :class:`HierarchicalSelfAttention`.
    """

    attend: Attend | None = None

    def __init__(
        self, target_channels: int, source_channels: Sequence[int], backend: str = "auto"
    ) -> None:
        super().__init__()
        self.heads = MSCA_HEADS
        self.value_head_dims = tuple(c // MSCA_HEADS for c in source_channels)
        self.backend = backend
        width = self.heads * QK_HEAD_DIM
        self.q_proj = nn.Linear(target_channels, width, bias=False)
        self.k_projs = nn.ModuleList(nn.Linear(c, width, bias=False) for c in source_channels)
        self.out_proj = nn.Linear(sum(source_channels), target_channels)
        self.gamma = nn.Parameter(torch.zeros(target_channels))
        _init_projections(self)

    def forward(self, target: Tensor, sources: Sequence[Tensor]) -> Tensor:
        """``target [B, C_t, H, W]`` and sources ``[B, C_s, H_s, W_s]`` to the target's shape."""
        return self._run(target, sources)[0]

    def forward_with_weights(
        self, target: Tensor, sources: Sequence[Tensor]
    ) -> tuple[Tensor, Tensor]:
        """As :meth:`forward`, with the share of each source ``[B, heads, H·W, S]`` (fp32).

        Raises ``ValueError`` where ``attend`` is set to a function that gives no shares.
        """
        y, weights = self._run(target, sources)
        if weights is None:
            raise ValueError("the attention function of this block gives no weights of the sources")
        return y, weights

    def _run(self, target: Tensor, sources: Sequence[Tensor]) -> tuple[Tensor, Tensor | None]:
        target_tokens = _as_tokens(target)
        source_tokens = [_as_tokens(source) for source in sources]
        q = _split_heads(self.q_proj(target_tokens), self.heads)
        ks = [
            _split_heads(proj(tokens), self.heads)
            for proj, tokens in zip(self.k_projs, source_tokens, strict=True)
        ]
        vs = [_split_heads(tokens, self.heads).to(q.dtype) for tokens in source_tokens]
        outs: Sequence[Tensor]
        weights: Tensor | None
        if self.attend is not None:
            outs, weights = self.attend(q, ks, vs)
        else:
            outs, _, weights = multi_scale_attention(q, ks, vs, backend=self.backend)
        return _project(self, target, target_tokens, outs), weights


def attention_blocks(
    model: nn.Module,
) -> Iterator[HierarchicalSelfAttention | MultiScaleCrossAttention]:
    """The attention blocks of ``model``, itself included, in their order."""
    for module in model.modules():
        if isinstance(module, HierarchicalSelfAttention | MultiScaleCrossAttention):
            yield module


def _init_projections(block: nn.Module) -> None:
    for module in block.modules():
        if isinstance(module, nn.Linear):
            nn.init.xavier_uniform_(module.weight)
            if module.bias is not None:
                nn.init.zeros_(module.bias)


def _as_tokens(x: Tensor) -> Tensor:
    """``[B, C, H, W]`` as ``[B, H·W, C]``: a view of a channels-last map, a copy of any other."""
    return x.permute(0, 2, 3, 1).contiguous().flatten(1, 2)


def _split_heads(tokens: Tensor, heads: int) -> Tensor:
    """``[B, N, heads·D]`` as ``[B, N, heads, D]``, a view."""
    batch, count, channels = tokens.shape
    return tokens.view(batch, count, heads, channels // heads)


def _project(
    block: "HierarchicalSelfAttention | MultiScaleCrossAttention",
    x: Tensor,
    tokens: Tensor,
    outs: Sequence[Tensor],
) -> Tensor:
    """``x + γ ⊙ (concat(outs) Wo + bo)`` in the dtype and layout of ``x [B, C, H, W]``.

    ``tokens`` are those of ``x``, and ``outs`` are ``[B, H·W, heads, D_s]``. The weight takes the
    dtype that attention ran in, which autocast would choose for a linear layer.
    """
    batch, channels, height, width = x.shape
    weight = block.out_proj.weight.to(outs[0].dtype)
    y = gated_projection(
        tokens,
        [out.flatten(2) for out in outs],
        weight,
        block.out_proj.bias,
        block.gamma,
        block.backend,
    )
    y = y.view(batch, height, width, channels).permute(0, 3, 1, 2)
    return y if x.is_contiguous(memory_format=torch.channels_last) else y.contiguous()
