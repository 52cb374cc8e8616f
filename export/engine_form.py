"""Which form of attention a builder executes best: one attention is built, and its log decides.

A release may fuse what another does not, and a log may call fused whose scores are stored all the
same (seen in fp32), so that what counts is the activation memory of a real build.
"""

from functools import cache

import torch
from torch import Tensor, nn

from hmc_fast.devices import precision_dtype
from hmc_fast.errors import UserError
from hmc_fast.export.attention import FORMS, RUNTIME_FORMS, decompositions
from hmc_fast.export.builders import Builder, BuildRequest
from hmc_fast.export.onnx_export import OPSETS, to_onnx
from hmc_fast.export.sidecar import Profile
from hmc_fast.kernels import attention
from hmc_fast.progress import no_progress

CANDIDATES = (RUNTIME_FORMS["tensorrt"], "nodes", "blocks")
"""Best first, where each is fused; the last bounds memory wherever nothing is."""
BATCH, TOKENS, HEADS, QK_WIDTH, V_WIDTH = 1, 16_384, 2, 64, 256
SCORES = BATCH * HEADS * TOKENS**2


class _OneAttention(nn.Module):
    """Packed fp32 tokens ``[B, N, H, 64 + 64 + 256]`` to fp32 means ``[B, 256]``."""

    def __init__(self, dtype: torch.dtype) -> None:
        super().__init__()
        self.dtype = dtype

    def forward(self, packed: Tensor) -> Tensor:
        q, k, v = torch.split(packed.to(self.dtype), [QK_WIDTH, QK_WIDTH, V_WIDTH], dim=-1)
        out, _ = attention(q, k, v, backend="reference")
        return out.float().mean((1, 2))


@cache
def engine_form(
    flavour: str,
    targets: tuple[str, ...],
    precision: str,
    candidates: tuple[str, ...] = CANDIDATES,
) -> str:
    """The first form whose scores the installed builder does not store, else that of least memory.

    Args:
        flavour: of the builder.
        targets: architectures, all of which the one build is for.
        precision: of the graph.
        candidates: names in :data:`hmc_fast.export.attention.FORMS`, best first.

    Returns the first candidate where the builder's log tells no memory, or refuses all of them: the
    model's own build will say why.
    """
    builder = Builder(flavour)
    dtype = precision_dtype(precision)
    request = BuildRequest(Profile(BATCH, BATCH, BATCH), targets, None, False, False)
    example = torch.zeros(BATCH, TOKENS, HEADS, 2 * QK_WIDTH + V_WIDTH)
    with torch.no_grad():
        program = torch.export.export(_OneAttention(dtype), (example,), strict=False)
    found: dict[str, int] = {}
    for name in candidates:
        form = FORMS[name]
        whole = program.run_decompositions(decompositions(form))
        graph = to_onnx(whole, max(OPSETS[precision], form.opset))
        try:
            memory = builder.build(graph, request, no_progress).log.activation_bytes
        except UserError:  # it has no kernel for this form
            continue
        if memory is None or memory < SCORES * dtype.itemsize:
            return name
        found[name] = memory
    return min(found, key=found.__getitem__, default=candidates[0])
