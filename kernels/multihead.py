"""``nn.MultiheadAttention``'s calling habits on top of the fused operators."""

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import linear

from hmc_fast.kernels import reference
from hmc_fast.kernels.api import attention, multi_scale_attention
from hmc_fast.kernels.capability import NOWHERE

Sources = Tensor | Sequence[Tensor]


class MultiheadAttention(nn.Module):
    """Attention of ``[M, B, E]`` tokens, ``[B, M, E]`` with ``batch_first=True``, ``[M, E]`` alone.

    Takes the arguments of :class:`torch.nn.MultiheadAttention` and has its parameters by its names,
    so that ``load_state_dict`` takes those of one. Beyond it, ``key`` and ``value`` may be lists of
    several sources, which share the projections and one softmax and are never concatenated.

    Two habits differ. ``need_weights`` is False unless it is asked for: the weights are what fused
    attention does not form. What no backend can do is refused by its name, see
    :data:`hmc_fast.kernels.capability.NOWHERE`: dropout, masks, causality, added biases and zeros.

    Args:
        embed_dim: width ``E`` of queries and output.
        num_heads: heads; divides ``embed_dim``.
        dropout: 0.
        bias: whether the projections have biases.
        add_bias_kv: False.
        add_zero_attn: False.
        kdim: width of keys, ``embed_dim`` by default.
        vdim: width of values, ``embed_dim`` by default.
        batch_first: whether the batch is the first dimension, not the second.
        device: of the parameters.
        dtype: of the parameters and of the inputs.
        backend: ``"auto"``, ``"reference"``, ``"cpu"`` or ``"triton"``.

    Raises:
        NotImplementedError: an argument that no backend can do.
        ValueError: ``embed_dim`` is not a multiple of ``num_heads``.
    """

    in_proj_weight: nn.Parameter | None
    in_proj_bias: nn.Parameter | None

    def __init__(
        self,
        embed_dim: int,
        num_heads: int,
        dropout: float = 0.0,
        bias: bool = True,
        add_bias_kv: bool = False,
        add_zero_attn: bool = False,
        kdim: int | None = None,
        vdim: int | None = None,
        batch_first: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        backend: str = "auto",
    ) -> None:
        super().__init__()
        refuse(dropout=dropout, add_bias_kv=add_bias_kv, add_zero_attn=add_zero_attn)
        if num_heads < 1 or embed_dim < 1 or embed_dim % num_heads:
            raise ValueError(f"embed_dim {embed_dim} is no multiple of num_heads {num_heads}")
        # PyTorch's module makes the parameters, so that names, shapes and first values are its own.
        made = nn.MultiheadAttention(
            embed_dim, num_heads, bias=bias, kdim=kdim, vdim=vdim, device=device, dtype=dtype
        )
        for name, parameter in made.named_parameters(recurse=False):
            self.register_parameter(name, parameter)
        for name in ("in_proj_weight", "in_proj_bias"):
            if name not in self._parameters:
                self.register_parameter(name, None)
        self.out_proj = made.out_proj
        self.embed_dim = embed_dim
        self.num_heads = num_heads
        self.batch_first = batch_first
        self.backend = backend

    def forward(
        self,
        query: Tensor,
        key: Sources,
        value: Sources,
        key_padding_mask: None = None,
        need_weights: bool = False,
        attn_mask: None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attend from ``query`` to ``key``, and return what ``value`` has there.

        Args:
            query: ``[M, B, E]``, or as the class says.
            key: ``[N, B, kdim]``, or a list with an ``N`` for each source.
            value: ``[N, B, vdim]``, as many as keys.
            key_padding_mask: None.
            need_weights: also return the weights, in memory that grows with ``M·N``.
            attn_mask: None.
            average_attn_weights: the mean over the heads, not each.
            is_causal: False.

        Returns:
            The output, in the shape of ``query``, and None or the weights ``[B, M, N]``, or
            ``[B, H, M, N]`` of each head, without ``B`` for an input without it; tokens of several
            sources follow each other.

        Raises:
            NotImplementedError: an argument that no backend can do.
            ValueError: ``query``, ``key`` and ``value`` do not fit each other.
        """
        refuse(key_padding_mask=key_padding_mask, attn_mask=attn_mask, is_causal=is_causal)
        keys, values = _listed(key), _listed(value)
        if not keys or len(keys) != len(values):
            raise ValueError(f"{len(keys)} keys and {len(values)} values; every source needs both")
        named = [("query", query), *(("key", k) for k in keys), *(("value", v) for v in values)]
        for name, x in named:
            if x.dim() != query.dim() or x.dim() not in (2, 3):
                raise ValueError(
                    f"{name} has {x.dim()} dimensions; all need 3, or 2 without a batch"
                )
        weights, biases = self._projections()
        q = self._heads(query, weights[0], biases[0])
        ks = [self._heads(k, weights[1], biases[1]) for k in keys]
        vs = [self._heads(v, weights[2], biases[2]) for v in values]
        if len(ks) == 1:
            attended, _ = attention(q, ks[0], vs[0], backend=self.backend, layout="bnhd")
        else:
            parts, _, _ = multi_scale_attention(q, ks, vs, backend=self.backend, layout="bnhd")
            attended = torch.stack(parts).sum(0)  # of the shares that each source gave
        out = self._as_given(self.out_proj(attended.flatten(2)), query)
        if not need_weights:
            return out, None
        shares = reference.attention_weights(q, torch.cat(ks, 1), q.shape[-1] ** -0.5).to(q.dtype)
        shares = shares.mean(1) if average_attn_weights else shares
        return out, shares if query.dim() == 3 else shares[0]

    def _projections(self) -> tuple[Sequence[Tensor], Sequence[Tensor | None]]:
        """Weights and biases of queries, keys and values."""
        weights: Sequence[Tensor]
        if self.in_proj_weight is None:
            weights = [self.get_parameter(f"{x}_proj_weight") for x in "qkv"]
        else:
            weights = self.in_proj_weight.chunk(3)
        if self.in_proj_bias is None:
            return weights, (None, None, None)
        return weights, self.in_proj_bias.chunk(3)

    def _heads(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """``x`` projected, as ``[B, N, H, D]``."""
        if x.dim() == 2:
            x = x[None]
        elif not self.batch_first:
            x = x.transpose(0, 1)
        batch, count, _ = x.shape
        return linear(x, weight, bias).view(batch, count, self.num_heads, -1)

    def _as_given(self, out: Tensor, query: Tensor) -> Tensor:
        if query.dim() == 2:
            return out[0]
        return out if self.batch_first else out.transpose(0, 1)


def refuse(**arguments: object) -> None:
    """Raises :class:`NotImplementedError` for each of :data:`NOWHERE` that is given."""
    for name, value in arguments.items():
        if value is not None and (isinstance(value, Tensor) or value):
            raise NotImplementedError(f"{name}: {NOWHERE[name]}")


def _listed(sources: Sources) -> list[Tensor]:
    return [sources] if isinstance(sources, Tensor) else list(sources)
