"""The forms in which a graph writes attention, one for what each runtime executes best.

Softmax is computed in fp32 in every form, and the products around it stay in the dtype of the
graph: a strongly typed engine then runs them on its half-precision units, which
:func:`hmc_fast.kernels.ops.decompositions`, all in fp32, would forbid. The log-sum-exp and the
scale weights, which no graph of ours needs, are not computed. A new form is one function and one
line of :data:`FORMS`.
"""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.export import ExportedProgram
from torch.nn.functional import pad

from hmc_fast.errors import UserError
from hmc_fast.kernels import ops

Attend = Callable[[Tensor, Sequence[Tensor], Sequence[Tensor], float], list[Tensor]]
"""``(q [B, M, H, Dqk], ks, vs, scale)`` to ``outs[s] [B, M, H, Dv_s]`` under a union softmax."""

_FORWARDS = (
    torch.ops.hmc_fast.attention_forward.default,
    torch.ops.hmc_fast.multi_scale_attention_forward.default,
)
BLOCK_SCORES = 2**23
"""Scores a film and head that a block of queries may have: 32 MiB in fp32."""
KERNEL_WIDTHS = (64, 256)
"""On sm_86 the builder reports attention of width 128 as fused, and still stores its scores."""
WIDEST_KERNEL = max(KERNEL_WIDTHS)
LEAST_BLOCK = 128
"""Queries; smaller blocks cost more calls than they save memory."""


@dataclass(frozen=True)
class AttentionForm:
    """One way to write attention; ``purpose`` says for what."""

    name: str
    attend: Attend
    purpose: str


def in_blocks(q: Tensor, ks: Sequence[Tensor], vs: Sequence[Tensor], scale: float) -> list[Tensor]:
    """Matrix products and one softmax for each block of queries, so that memory is bounded."""
    queries = (q * scale).transpose(1, 2)  # [B, H, M, Dqk]
    keys = [k.permute(0, 2, 3, 1) for k in ks]
    values = [v.transpose(1, 2) for v in vs]
    tokens = [k.shape[1] for k in ks]
    blocks: list[list[Tensor]] = [[] for _ in vs]
    for block in torch.split(queries, block_rows(sum(tokens)), dim=2):
        scores = [(block @ k).float() for k in keys]
        union = scores[0] if len(scores) == 1 else torch.cat(scores, dim=-1)
        shares = torch.split(union.softmax(dim=-1), tokens, dim=-1)
        for outs, share, v in zip(blocks, shares, values, strict=True):
            outs.append(share.to(v.dtype) @ v)
    return [torch.cat(outs, dim=2).transpose(1, 2).contiguous() for outs in blocks]


def block_rows(keys: int) -> int:
    """Queries a block beside ``keys`` keys."""
    return max(LEAST_BLOCK, BLOCK_SCORES // keys)


def on_equal_widths(
    q: Tensor, ks: Sequence[Tensor], vs: Sequence[Tensor], scale: float
) -> list[Tensor]:
    """Attention as TensorRT's fused kernels want it: q, k and v of one width.

    Zeros behind the narrower of them change no score and no output. Under the union softmax of
    several sources all keys are joined. Their values stand side by side in one attention where they
    fit into the widest kernel, with zeros at the other sources' tokens; otherwise each source has
    an attention.
    """
    keys = ks[0] if len(ks) == 1 else torch.cat(list(ks), dim=1)
    widths = [v.shape[3] for v in vs]
    values = [_among_all_tokens(vs, source) for source in range(len(vs))]
    if sum(widths) > WIDEST_KERNEL:
        return [_on_width(max(q.shape[3], v.shape[3]), q, keys, v, scale) for v in values]
    needed = max(q.shape[3], sum(widths))
    width = next((w for w in KERNEL_WIDTHS if w >= needed), needed)
    joined = _on_width(width, q, keys, torch.cat(values, dim=3), scale)
    return [out.contiguous() for out in torch.split(joined, widths, dim=3)]


def _among_all_tokens(vs: Sequence[Tensor], source: int) -> Tensor:
    """Values of a source with zeros at the tokens of those before and after it."""
    before, after = (sum(v.shape[1] for v in part) for part in (vs[:source], vs[source + 1 :]))
    return vs[source] if len(vs) == 1 else pad(vs[source], (0, 0, 0, 0, before, after))


def _on_width(width: int, q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """``[B, M, H, Dv]``, with q, k and v filled up to ``width`` with zeros."""
    queries, keys, values = (pad(x, (0, width - x.shape[3])) for x in (q * scale, k, v))
    scores = queries.transpose(1, 2) @ keys.permute(0, 2, 3, 1)
    shares = scores.float().softmax(dim=-1).to(v.dtype)
    out = (shares @ values.transpose(1, 2)).transpose(1, 2)
    return out[..., : v.shape[3]].contiguous()


FORMS = {
    form.name: form
    for form in (
        AttentionForm("blocks", in_blocks, "ONNX Runtime and OpenVINO: memory is bounded"),
        AttentionForm("equal-widths", on_equal_widths, "TensorRT: it runs as one fused kernel"),
    )
}
RUNTIME_FORMS = {"onnxruntime": "blocks", "openvino": "blocks", "tensorrt": "equal-widths"}
"""The form that each runtime executes best."""


def form_for(runtime: str) -> AttentionForm:
    """The form of attention for a runtime; raises :class:`UserError` for an unknown one."""
    if runtime not in RUNTIME_FORMS:
        raise UserError(f"unknown runtime {runtime!r}; choose one of {', '.join(RUNTIME_FORMS)}")
    return FORMS[RUNTIME_FORMS[runtime]]


def decompositions(form: AttentionForm) -> dict[Any, Callable[..., Any]]:
    """Table for ``ExportedProgram.run_decompositions``."""
    return {
        **ops.decompositions(),
        _FORWARDS[0]: partial(_attention, form),
        _FORWARDS[1]: partial(_multi_scale, form),
    }


def check_only_outputs_used(program: ExportedProgram) -> None:
    """Raises :class:`UserError` for a model that uses what no form computes."""
    for node in program.graph.nodes:
        if node.target not in _FORWARDS:
            continue
        for result in node.users:
            if result.target is operator.getitem and result.args[1] > 0 and result.users:
                raise UserError(
                    "the model uses the log-sum-exp or the scale weights of an attention "
                    f"({node.name}), which an exported graph does not have; export a model that "
                    "returns logits from the attention's output alone"
                )


def _attention(
    form: AttentionForm, q: Tensor, k: Tensor, v: Tensor, scale: float, backend: str
) -> tuple[Tensor, Tensor]:
    (out,) = form.attend(q, [k], [v], scale)
    return out, _unused(q)


def _multi_scale(
    form: AttentionForm,
    q: Tensor,
    ks: Sequence[Tensor],
    vs: Sequence[Tensor],
    scale: float,
    backend: str,
) -> tuple[list[Tensor], Tensor, Tensor]:
    weights = _unused(q).unsqueeze(-1).expand(-1, -1, -1, len(vs)).clone()
    return form.attend(q, ks, vs, scale), _unused(q), weights


def _unused(q: Tensor) -> Tensor:
    """In place of the log-sum-exp ``[B, H, M]``, which the graph drops."""
    batch, queries, heads, _ = q.shape
    return q.new_zeros(batch, heads, queries, dtype=torch.float32)
