"""TensorRT and TensorRT for RTX: an engine, with attention in the form that its builder fuses.

Without a GPU the one for RTX still builds, which tells size, memory and fusion of the engine.
"""

import copy
from collections.abc import Callable
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from hmc_fast.bench.cases import Case
from hmc_fast.bench.engine_facts import BuiltNotRunError, facts_of
from hmc_fast.bench.peers.peer import ModuleVariant, Peer
from hmc_fast.devices import PRECISIONS
from hmc_fast.environment import installed_version
from hmc_fast.errors import UserError
from hmc_fast.export.builders import Builder, BuildRequest, gpu_architecture
from hmc_fast.export.engine_form import engine_form
from hmc_fast.export.onnx_export import OPSETS, engine_graph
from hmc_fast.export.precision import PreciseModel
from hmc_fast.export.runtime import EngineCall
from hmc_fast.export.sidecar import Profile
from hmc_fast.models import FilmModel
from hmc_fast.progress import no_progress


def _why_not(flavour: str, case: Case, dtype: torch.dtype, device: torch.device) -> str | None:
    if "training" in case.tasks:
        return "an engine infers only"
    if installed_version("onnxscript") is None:
        return f"onnxscript is not installed: pip install 'hmc-fast[export,{flavour}]'"
    try:
        _targets(Builder(flavour), device)
    except UserError as error:
        return str(error)
    return None


def _targets(builder: Builder, device: torch.device) -> tuple[str, ...]:
    """The GPU at hand, or without one all that the builder can name."""
    return builder.choose_targets((gpu_architecture(),) if device.type == "cuda" else ())


def _engine(flavour: str, model: nn.Module, images: Tensor) -> Callable[[Tensor], Tensor]:
    """Raises :class:`BuiltNotRunError` where there is no GPU to run the engine."""
    builder = Builder(flavour)
    targets = _targets(builder, images.device)
    precision = next(name for name, dtype in PRECISIONS.items() if dtype == images.dtype)
    batch = len(images)
    example = images.float()
    exact = cast(FilmModel, copy.deepcopy(model).float())
    precise = PreciseModel(exact, images.dtype, exact.config.num_classes, example).eval()
    with torch.no_grad():
        program = torch.export.export(precise, (example,), strict=False)
    form = engine_form(flavour, targets, precision)
    graph = engine_graph(program, form, OPSETS[precision])
    request = BuildRequest(Profile(batch, batch, batch), targets, None, False, False)
    built = builder.build(graph.content, request, no_progress)
    if images.is_cuda:
        call = EngineCall(builder.trt, built.content, images.device)
        return lambda films: call(films.float().contiguous())
    raise BuiltNotRunError(
        facts_of(builder, targets, batch, graph, built),
        "an engine needs an NVIDIA GPU",
    )


def _peer(name: str, flavour: str, colour: str, title: str) -> Peer:
    return Peer(
        name,
        "runtime",
        colour,
        f"an engine of {title}; built only, where there is no GPU",
        models=(ModuleVariant("strongly typed engine", build=partial(_engine, flavour)),),
        why_not=partial(_why_not, flavour),
        trainable=False,
        slow_on_cpu=("model",),
    )


TENSORRT = _peer("tensorrt", "tensorrt", "#4b8b00", "the full TensorRT")
TENSORRT_RTX = _peer("tensorrt_rtx", "tensorrt-rtx", "#8fbf00", "TensorRT for RTX")
