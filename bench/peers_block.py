"""The whole self-attention block: ours against ``torch.compile`` of it with every attention."""

from collections.abc import Callable, Sequence
from functools import partial

import torch
from torch import Tensor, nn

from hmc_fast.bench.candidates import why_no_compiler
from hmc_fast.bench.cases import Case, Inputs
from hmc_fast.bench.layouts import Attend, heads_first, widened
from hmc_fast.bench.peers import BoundCall, Peer, Variant, why_no_triton
from hmc_fast.bench.peers_flex import attend_by_flex
from hmc_fast.bench.peers_sdpa import SDPA_BACKENDS, attend_by
from hmc_fast.kernels import reference
from hmc_fast.kernels.geometry import QK_HEAD_DIM
from hmc_fast.kernels.testing import textbook_attention
from hmc_fast.models import HierarchicalSelfAttention, MultiScaleCrossAttention

TokenAttend = Callable[[Tensor, Sequence[Tensor], Sequence[Tensor]], list[Tensor]]
"""``(q [B, M, H, Dqk], ks, vs)`` to ``outs[s] [B, M, H, Dv_s]`` under the union softmax."""
PARAMETER_SEED = 0
GATE_STD = 0.5


def randomise_gates(module: nn.Module) -> None:
    """Draw biases and gates, which start at zero and would hide the attention."""
    generator = torch.Generator().manual_seed(PARAMETER_SEED)
    for block in module.modules():
        if isinstance(block, HierarchicalSelfAttention | MultiScaleCrossAttention):
            for parameter in (block.gamma, block.out_proj.bias):
                drawn = torch.randn(parameter.shape, generator=generator) * GATE_STD
                with torch.no_grad():
                    parameter.copy_(drawn)


class PeerSelfAttention(nn.Module):
    """:class:`HierarchicalSelfAttention` with its parameters and another attention function."""

    def __init__(self, block: HierarchicalSelfAttention, attend: TokenAttend) -> None:
        super().__init__()
        self.block = block
        self.attend = attend

    def forward(self, x: Tensor) -> Tensor:
        """``x [B, C, H, W]`` to the same shape."""
        block, tokens = self.block, _tokens(x)
        q, k = _heads(block.qk_proj(tokens), 2 * block.heads).chunk(2, dim=2)
        v = _heads(tokens, block.heads).to(q.dtype)
        return _gated(block, x, tokens, self.attend(q, [k], [v]))


class PeerCrossAttention(nn.Module):
    """:class:`MultiScaleCrossAttention` with its parameters and another attention function."""

    def __init__(self, block: MultiScaleCrossAttention, attend: TokenAttend) -> None:
        super().__init__()
        self.block = block
        self.attend = attend

    def forward(self, target: Tensor, sources: Sequence[Tensor]) -> Tensor:
        """As :meth:`MultiScaleCrossAttention.forward`."""
        block, tokens = self.block, _tokens(target)
        source_tokens = [_tokens(source) for source in sources]
        q = _heads(block.q_proj(tokens), block.heads)
        ks = [
            _heads(proj(own), block.heads)
            for proj, own in zip(block.k_projs, source_tokens, strict=True)
        ]
        vs = [_heads(own, block.heads).to(q.dtype) for own in source_tokens]
        return _gated(block, target, tokens, self.attend(q, ks, vs))


def reference_attend(q: Tensor, ks: Sequence[Tensor], vs: Sequence[Tensor]) -> list[Tensor]:
    """The reference in one query chunk, which a compiler sees through."""
    scale = QK_HEAD_DIM**-0.5
    outs, _, _ = reference.multi_scale_attention(q, ks, vs, scale, query_chunk=q.shape[1])
    return outs


def token_attend(attend: Attend, *, equal_head_dims: bool) -> TokenAttend:
    """An attention function of one source for blocks; several sources are concatenated."""

    def attend_tokens(q: Tensor, ks: Sequence[Tensor], vs: Sequence[Tensor]) -> list[Tensor]:
        k = ks[0] if len(ks) == 1 else torch.cat(list(ks), dim=1)
        outs = []
        for s, v in enumerate(vs):
            before = sum(other.shape[1] for other in vs[:s])
            after = sum(other.shape[1] for other in vs[s + 1 :])
            value = nn.functional.pad(v, (0, 0, 0, 0, before, after)) if before or after else v
            width = max(q.shape[-1], v.shape[-1]) if equal_head_dims else q.shape[-1]
            q_wide, k_wide = (heads_first(widened(x, width)) for x in (q, k))
            v_wide = widened(value, width) if equal_head_dims else value
            out = attend(q_wide, k_wide, heads_first(v_wide), QK_HEAD_DIM**-0.5)
            outs.append(heads_first(out)[..., : v.shape[-1]])
        return outs

    return attend_tokens


def reference_block(
    case: Case, parameters: torch.dtype, compute: torch.dtype, device: torch.device
) -> nn.Module:
    """The block of ``case`` by textbook attention, with the parameters of every block peer.

    Parameters are rounded to ``parameters`` and then promoted to ``compute``, so fp64 computes with
    the very numbers that the low precision has.
    """
    block = _prepared(HierarchicalSelfAttention(case.channels, "reference"))
    return PeerSelfAttention(block.to(device, parameters).to(compute), _textbook_attend)


def _textbook_attend(q: Tensor, ks: Sequence[Tensor], vs: Sequence[Tensor]) -> list[Tensor]:
    return textbook_attention(q, ks, vs, QK_HEAD_DIM**-0.5)[0]


def _tokens(x: Tensor) -> Tensor:
    return x.permute(0, 2, 3, 1).contiguous().flatten(1, 2)


def _heads(tokens: Tensor, heads: int) -> Tensor:
    batch, count, channels = tokens.shape
    return tokens.view(batch, count, heads, channels // heads)


def _gated(
    block: HierarchicalSelfAttention | MultiScaleCrossAttention,
    x: Tensor,
    tokens: Tensor,
    outs: Sequence[Tensor],
) -> Tensor:
    weight = block.out_proj.weight.to(outs[0].dtype)
    attended = [out.flatten(2) for out in outs]
    y = reference.gated_projection(tokens, attended, weight, block.out_proj.bias, block.gamma)
    batch, channels, height, width = x.shape
    return y.view(batch, height, width, channels).permute(0, 3, 1, 2)


def block_peers() -> list[Peer]:
    """What runs a block case: ours, the reference, and compiled blocks around each peer."""
    compiled = partial(_whole_block, [reference_attend])
    peers = [
        Peer("triton", partial(_own_block, "triton"), why_no_triton, ours=True),
        Peer("eager", partial(_own_block, "reference")),
        Peer("compiled", compiled, _why_no_compiled_block),
    ]
    for sdpa in SDPA_BACKENDS:
        attend = partial(attend_by, sdpa.backend)
        inner = [token_attend(attend, equal_head_dims=equal) for equal in sdpa.layouts]
        peers.append(Peer(sdpa.name, partial(_whole_block, inner), sdpa.why_not))
    flex = [token_attend(attend_by_flex, equal_head_dims=False)]
    return [*peers, Peer("flex", partial(_whole_block, flex), _why_no_compiled_block)]


def _why_no_compiled_block(case: Case, dtype: torch.dtype, device: torch.device) -> str | None:
    return why_no_compiler(device)


def _own_block(backend: str, case: Case) -> list[Variant]:
    block = HierarchicalSelfAttention(case.channels, backend)
    how = "fused attention and projection" if backend == "triton" else "the reference block"
    return [Variant(how, partial(_bind_block, block, _prepared(block)))]


def _whole_block(attends: Sequence[TokenAttend], case: Case) -> list[Variant]:
    variants = []
    for attend in attends:
        block = _prepared(HierarchicalSelfAttention(case.channels, "reference"))
        call = torch.compile(PeerSelfAttention(block, attend), fullgraph=True, dynamic=False)
        variants.append(Variant("torch.compile of the block", partial(_bind_block, block, call)))
    return variants


def _prepared(block: HierarchicalSelfAttention) -> HierarchicalSelfAttention:
    """The same parameters in every block of a width."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(PARAMETER_SEED)
        fresh = HierarchicalSelfAttention(block.heads * block.value_head_dims[0])
    block.load_state_dict(fresh.state_dict())
    randomise_gates(block)
    return block


def _bind_block(
    block: HierarchicalSelfAttention, call: Callable[[Tensor], Tensor], _: Case, inputs: Inputs
) -> BoundCall:
    block.to(inputs.q.device, inputs.q.dtype)
    x = inputs.q.detach().requires_grad_()
    leaves = [x, *block.parameters()]
    return BoundCall(lambda: [call(x)], leaves, inputs.d_outs)
