"""The forms in which a graph writes attention, one for what each runtime executes best.

Softmax is computed in fp32 in every form but ``nodes``, which cannot say so, and the products
around it stay in the dtype of the graph: a strongly typed engine then runs them on its
half-precision units, which :func:`hmc_fast.kernels.ops.decompositions`, all in fp32, would forbid.
The log-sum-exp and the scale weights, which no graph of ours needs, are not computed. A new form is
one function and one line of :data:`FORMS`.
"""

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

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
    """One way to write attention.

    Args:
        name: in sidecars.
        attend: writes it.
        purpose: what it is for.
        fusion: how a builder makes one kernel of an attention: it finds the ``pattern``, a ``node``
            is a kernel or no build, or not at all.
        opset: the first that has its operators.
    """

    name: str
    attend: Attend
    purpose: str
    fusion: Literal["pattern", "node", "none"]
    opset: int = 0


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


def _on_one_width(
    attend: Callable[[Tensor, Tensor, Tensor, float], Tensor],
    q: Tensor,
    ks: Sequence[Tensor],
    vs: Sequence[Tensor],
    scale: float,
) -> list[Tensor]:
    """Attention as TensorRT's fused kernels want it: ``attend`` gets q, k and v of one width.

    Zeros behind the narrower of them change no score and no output. Under the union softmax of
    several sources all keys are joined. Their values stand side by side in one attention where they
    fit into the widest kernel, with zeros at the other sources' tokens; otherwise each source has
    an attention.
    """
    keys = ks[0] if len(ks) == 1 else torch.cat(list(ks), dim=1)
    widths = [v.shape[3] for v in vs]
    values = [_among_all_tokens(vs, source) for source in range(len(vs))]

    def attend_padded(width: int, v: Tensor) -> Tensor:
        q_, k_, v_ = (pad(x, (0, width - x.shape[3])) for x in (q, keys, v))
        return attend(q_, k_, v_, scale)[..., : v.shape[3]].contiguous()

    if sum(widths) > WIDEST_KERNEL:
        return [attend_padded(max(q.shape[3], v.shape[3]), v) for v in values]
    needed = max(q.shape[3], sum(widths))
    width = next((w for w in KERNEL_WIDTHS if w >= needed), needed)
    joined = attend_padded(width, torch.cat(values, dim=3))
    return [out.contiguous() for out in torch.split(joined, widths, dim=3)]


def _among_all_tokens(vs: Sequence[Tensor], source: int) -> Tensor:
    """Values of a source with zeros at the tokens of those before and after it."""
    before, after = (sum(v.shape[1] for v in part) for part in (vs[:source], vs[source + 1 :]))
    return vs[source] if len(vs) == 1 else pad(vs[source], (0, 0, 0, 0, before, after))


def _by_products(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """``[B, M, H, D]``: two products and a softmax, which a builder finds by their pattern."""
    scores = (q * scale).transpose(1, 2) @ k.permute(0, 2, 3, 1)
    shares = scores.float().softmax(dim=-1).to(v.dtype)
    return (shares @ v.transpose(1, 2)).transpose(1, 2)


def _by_node(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    """``[B, M, H, D]`` by ONNX's ``Attention``, which a builder fuses or refuses."""
    heads_first = (x.transpose(1, 2) for x in (q, k, v))
    # TensorRT refuses a node that says its softmax's precision.
    out: Tensor = torch.onnx.ops.attention(*heads_first, scale=scale)[0]
    return out.transpose(1, 2)


on_equal_widths: Attend = partial(_on_one_width, _by_products)
as_nodes: Attend = partial(_on_one_width, _by_node)

FORMS = {
    form.name: form
    for form in (
        AttentionForm("blocks", in_blocks, "where nothing is fused: memory is bounded", "none"),
        AttentionForm("equal-widths", on_equal_widths, "TensorRT: one fused kernel", "pattern"),
        AttentionForm("nodes", as_nodes, "TensorRT, should it find no pattern", "node", 23),
    )
}
RUNTIME_FORMS = {"onnxruntime": "blocks", "openvino": "blocks", "tensorrt": "equal-widths"}
"""The form that each runtime executes best; for an engine the builder is asked, see
:mod:`hmc_fast.export.engine_form`."""


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
