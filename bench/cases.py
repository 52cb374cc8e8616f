"""Named cases: an attention operator, a whole block or a model, at an image size and a batch.

``hsa_c3@1024x8`` is the self-attention of stage C3 for eight images of 1024², ``msca_c5`` the
cross-attention of C5 to C3 and C4, ``hsa_block_c3`` the whole self-attention block, ``hmc_net`` a
model; ``hmc_net@512x16/training`` is its training step instead of inference.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Literal, get_args

import torch
from torch import Tensor

from hmc_fast.errors import UserError
from hmc_fast.kernels import AttentionProblem
from hmc_fast.kernels.geometry import (
    CHANNELS,
    MSCA_TARGET,
    STRIDES,
    cross_attention_problem,
    self_attention_problem,
)
from hmc_fast.models import MODEL_NAMES, FilmModel, attention_blocks, create_model
from hmc_fast.models.hmc_net import STRIDE

Kind = Literal["operator", "block", "model"]
Task = Literal["forward", "backward", "both", "inference", "training"]
PASSES: tuple[Task, ...] = ("forward", "backward", "both")
"""Tasks of operators and blocks."""
MODEL_TASKS: tuple[Task, ...] = ("inference", "training")
_NAME = re.compile(r"([a-z0-9_]+)@(\d+)(?:x(\d+))?(?:/([a-z]+))?")
_ATTENTION = re.compile(r"(hsa_block|hsa|msca)_(c[2-5])")
_EXAMPLES = (
    "hsa_c3@1024x8, msca_c5@224, hsa_block_c3@512x4 (stage @ image size x batch), hmc_net@224x1 or "
    "resnet50@512x16/training (model @ image size x batch / task)"
)


@dataclass(frozen=True)
class Inputs:
    """Tensors of one call, and the cotangents ``d_outs`` of its results.

    For an operator ``q [B, M, H, Dqk]``, ``ks[s] [B, N_s, H, Dqk]``, ``vs[s] [B, N_s, H, Dv_s]``
    and ``d_outs[s] [B, M, H, Dv_s]``; for a block ``q`` is its feature map ``[B, C, H, W]``,
    channels-last, and there are neither keys nor values.
    """

    q: Tensor
    ks: list[Tensor]
    vs: list[Tensor]
    d_outs: list[Tensor]

    @property
    def leaves(self) -> list[Tensor]:
        return [self.q, *self.ks, *self.vs]


@dataclass(frozen=True)
class Case:
    """One problem to be timed, in each of its ``tasks``.

    ``problem`` is the attention of an operator or a block (dtype and device left open), None for a
    model; ``subject`` is the name before the ``@``.
    """

    subject: str
    kind: Kind
    size: int
    batch: int
    tasks: tuple[Task, ...]
    problem: AttentionProblem | None = None
    channels: int = 0

    @property
    def name(self) -> str:
        """``subject@size x batch``, as in the records."""
        return f"{self.subject}@{self.size}x{self.batch}"

    @property
    def label(self) -> str:
        """The name, with the tasks where they are not all passes."""
        return self.name if self.tasks == PASSES else f"{self.name}/{','.join(self.tasks)}"

    @property
    def attention(self) -> AttentionProblem:
        """The attention of an operator or a block."""
        if self.problem is None:
            raise TypeError(f"{self.name} is a model; its blocks' problems are problems()")
        return self.problem

    def problems(self, dtype: torch.dtype, device: torch.device) -> list[AttentionProblem]:
        """Every attention call of the case; a model's are those of its own blocks."""
        problems = (self.problem,) if self.problem else _problems_of(self.subject, self.size)
        batch = self.batch
        return [replace(p, batch=batch, dtype=dtype, device=device) for p in problems]

    def inputs(self, dtype: torch.dtype, device: torch.device, seed: int) -> Inputs:
        """Random tensors of an operator or a block in ``dtype``: a standard normal draw."""
        generator = torch.Generator(device).manual_seed(seed)
        if self.kind == "block":
            side = self.size // STRIDE_OF[self.channels]
            shape = (self.batch, self.channels, side, side)
            maps = [torch.randn(shape, generator=generator, device=device) for _ in range(2)]
            x, d_y = (m.to(dtype, memory_format=torch.channels_last) for m in maps)
            return Inputs(x, [], [], [d_y])
        problem = replace(self.attention, dtype=dtype, device=device)
        q, ks, vs = problem.tensors(generator)
        d_outs = [
            torch.randn(*q.shape[:3], width, generator=generator, device=device, dtype=dtype)
            for width in problem.v_head_dims
        ]
        return Inputs(q, ks, vs, d_outs)

    def images(
        self, dtype: torch.dtype, device: torch.device, seed: int, count: int | None = None
    ) -> Tensor:
        """Random images ``[count, 3, H, W]`` of a model, ``count`` the batch by default."""
        generator = torch.Generator(device).manual_seed(seed)
        shape = (count or self.batch, 3, self.size, self.size)
        return torch.randn(shape, generator=generator, device=device).to(dtype)


STRIDE_OF = {CHANNELS[stage]: STRIDES[stage] for stage in STRIDES}
"""Strides of feature maps by their channels."""


def parse_case(text: str, kinds: Sequence[Kind] = get_args(Kind)) -> Case:
    """The case of a name, which must be of one of ``kinds``.

    Raises :class:`UserError` for a name that does not fit, an unknown model or a wrong size.
    """
    match = _NAME.fullmatch(text)
    if match is None:
        raise UserError(f"unknown case {text!r}; cases look like {_EXAMPLES}")
    subject, size, batch, task = match[1], int(match[2]), int(match[3] or 1), match[4]
    if size < STRIDE or size % STRIDE:
        raise UserError(
            f"case {text!r}: the image size must be a multiple of {STRIDE}, at least {STRIDE}"
        )
    if batch < 1:
        raise UserError(f"case {text!r}: the batch must be at least 1")
    case = _case(text, subject, size, batch)
    if case.kind not in kinds:
        raise UserError(
            f"case {text!r}: is of kind {case.kind}, and this command times {' and '.join(kinds)}s;"
            " use bench kernels for operators and blocks, bench model for models"
        )
    allowed = MODEL_TASKS if case.kind == "model" else PASSES
    if task is None:
        return case
    if task not in allowed:
        raise UserError(f"case {text!r}: unknown task {task!r}; cases look like {_EXAMPLES}")
    return replace(case, tasks=tuple(t for t in allowed if t == task))


def _case(text: str, subject: str, size: int, batch: int) -> Case:
    if subject in MODEL_NAMES:
        return Case(subject, "model", size, batch, ("inference",))
    match = _ATTENTION.fullmatch(subject)
    if match is None:
        raise UserError(
            f"case {text!r}: unknown model or operator {subject!r}; models are "
            f"{', '.join(MODEL_NAMES)}; cases look like {_EXAMPLES}"
        )
    operator, stage = match[1], match[2]
    if operator == "msca" and stage != MSCA_TARGET:
        raise UserError(f"case {text!r}: cross-attention is defined for c5 alone: msca_c5@{size}")
    if operator == "msca":
        problem = cross_attention_problem(size, batch)
    else:
        problem = self_attention_problem(stage, size, batch)
    kind: Kind = "block" if operator == "hsa_block" else "operator"
    return Case(subject, kind, size, batch, PASSES, problem, CHANNELS[stage])


def check_passes(names: Sequence[str]) -> tuple[Task, ...]:
    """``names`` as passes. Raises :class:`UserError` for an unknown one."""
    for name in names:
        if name not in PASSES:
            raise UserError(f"unknown pass {name!r}; choose of {', '.join(PASSES)}")
    return tuple(task for task in PASSES if task in names)


def model_of(name: str, size: int, backend: str) -> FilmModel:
    """The named model for images of ``size``², with random parameters."""
    return create_model(name, image_size=size, backend=backend)


@lru_cache(maxsize=64)
def _problems_of(model: str, size: int) -> tuple[AttentionProblem, ...]:
    """The attention calls of one image, as the blocks of the model make them."""
    problems: list[AttentionProblem] = []

    def note(q: Tensor, ks: Sequence[Tensor], vs: Sequence[Tensor]) -> tuple[list[Tensor], None]:
        problems.append(AttentionProblem.of(q, ks, vs))
        return [q.new_empty(*q.shape[:3], v.shape[3]) for v in vs], None

    with torch.device("meta"), torch.no_grad():
        built = model_of(model, size, "reference").eval()
        blocks = list(attention_blocks(built))
        for block in blocks:
            block.attend = note
        if blocks:
            built(torch.empty(1, 3, size, size))
    return tuple(problems)
