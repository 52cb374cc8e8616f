"""Checkpoint to ONNX: a dynamic batch, attention as the runtime wants it, types decided."""

import os
import warnings
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from hmc_fast.checkpoint import CheckpointMetadata, load_model
from hmc_fast.data import Preprocessing
from hmc_fast.devices import precision_dtype
from hmc_fast.environment import installed_version
from hmc_fast.errors import UserError
from hmc_fast.export import plugin_graph
from hmc_fast.export.aot import attention_calls
from hmc_fast.export.attention import (
    FORMS,
    AttentionForm,
    check_only_outputs_used,
    decompositions,
    form_for,
)
from hmc_fast.export.memory import check_may_fit, fitting
from hmc_fast.export.packages import need
from hmc_fast.export.precision import PreciseModel
from hmc_fast.export.sidecar import (
    INPUT_NAME,
    OUTPUT_NAME,
    FileIdentity,
    Profile,
    Sidecar,
    read_description,
    sidecar_path,
    tensors_of,
    write_artefacts,
)
from hmc_fast.files import make_folder, refuse_overwrite
from hmc_fast.progress import Progress, no_progress

OPSETS = {"fp32": 20, "fp16": 20, "bf16": 22}
"""Opset 23 has an Attention node that TensorRT refuses for Dv != Dqk; bf16 convolutions need 22."""
EXAMPLE_BATCH = 2
"""The exporter takes a batch of one for a constant."""
RECORDED_PACKAGES = ("hmc-fast", "torch", "torchvision", "onnx", "onnxscript")


@dataclass(frozen=True)
class EngineGraph:
    """A graph as TensorRT takes it.

    ``form`` is that of our attention, None without; ``attentions`` counts all, None where they are
    our plugin's.
    """

    content: bytes
    form: str | None = None
    attentions: int | None = None


@dataclass(frozen=True)
class OnnxExport:
    """A graph in memory and the sidecar it will have, the file's name still open.

    ``engine`` is the same graph for TensorRT, where an engine was asked for.
    """

    content: bytes
    sidecar: Sidecar
    engine: EngineGraph | None = None


def export_onnx(
    checkpoint: Path,
    out: Path,
    *,
    precision: str = "fp32",
    profile: Profile | None = None,
    size: int | None = None,
    runtime: str = "onnxruntime",
    on_progress: Progress = no_progress,
) -> Sidecar:
    """Write ``checkpoint`` as the ONNX file ``out`` with its sidecar; see :func:`make_onnx`."""
    make_folder(out.parent)
    export = make_onnx(
        checkpoint,
        precision=precision,
        profile=profile,
        size=size,
        runtime=runtime,
        on_progress=on_progress,
    )
    return write_onnx(export, checkpoint, out)


def write_onnx(export: OnnxExport, checkpoint: Path, out: Path) -> Sidecar:
    """Write a graph and its sidecar, both or none; raises :class:`UserError`."""
    check_output(out, checkpoint)
    sidecar = name_files(export, checkpoint, out)
    write_artefacts([(out, export.content, sidecar)])
    return sidecar


def check_output(out: Path, checkpoint: Path) -> None:
    """Raises :class:`UserError` where ``out`` would replace the checkpoint or a foreign file."""
    for path in (out, sidecar_path(out)):
        refuse_overwrite(path, checkpoint)
    sidecar = sidecar_path(out)
    if out.exists() and not sidecar.is_file():
        raise UserError(f"{out}: exists and is no export of ours; name another file, or remove it")
    if sidecar.exists():
        try:
            read_description(sidecar)
        except UserError:
            raise UserError(
                f"{sidecar}: exists and is no sidecar of ours; name another file, or remove it"
            ) from None


def name_files(export: OnnxExport, checkpoint: Path, out: Path) -> Sidecar:
    """The sidecar once it is known that the graph goes to ``out``."""
    relative = os.path.relpath(checkpoint.resolve(), out.resolve().parent)
    return replace(
        export.sidecar,
        file=FileIdentity.of_bytes(out.name, export.content),
        checkpoint=replace(export.sidecar.checkpoint, name=relative),
    )


def make_onnx(
    checkpoint: Path,
    *,
    precision: str = "fp32",
    profile: Profile | None = None,
    size: int | None = None,
    runtime: str = "onnxruntime",
    engine_form: str | None = None,
    plugin: bool = False,
    gpu_memory_gib: float | None = None,
    on_progress: Progress = no_progress,
) -> OnnxExport:
    """The ONNX graph of a checkpoint, images ``[batch, 3, H, W]`` to logits, both fp32.

    Weights and activations have the dtype of ``precision``; softmax and logits are fp32. No
    activation is computed, so the image size costs no memory.

    Args:
        checkpoint: written by ``hmc-fast train``.
        precision: ``fp32``, ``fp16`` or ``bf16``.
        profile: batch sizes; by default ``1,8,64``, or what is likely to fit a GPU.
        size: rows of the image; by default as trained.
        runtime: whose form of attention the graph has: ``onnxruntime``, ``openvino`` or
            ``tensorrt``.
        engine_form: also make the graph that an engine of TensorRT is built from, with attention in
            this form; see :func:`hmc_fast.export.engine_form.engine_form`.
        plugin: also make that graph, with attention as nodes of our TensorRT plugin.
        gpu_memory_gib: memory of the GPU that the default profile shall fit.
        on_progress: told of the steps.

    Raises:
        UserError: the runtime is unknown, the checkpoint cannot be read, the model does not take
            that size, a parameter does not fit into the precision, the model has no attention for a
            plugin, or the packages of the extra ``export`` are missing.
    """
    need("onnx", "onnxscript", extra="export")
    form = form_for(runtime)
    traced = trace_checkpoint(
        checkpoint,
        precision=precision,
        profile=profile,
        size=size,
        gpu_memory_gib=gpu_memory_gib,
        on_progress=on_progress,
    )
    if plugin and not attention_calls(traced.program):
        raise UserError(f"{checkpoint}: this model has no attention for a plugin")
    on_progress("writing the graph", 1, 3)
    opset = OPSETS[precision]
    content = to_onnx(decompose(traced.program, decompositions(form)), opset)
    engine = None
    if plugin:
        table = plugin_graph.decompositions()
        engine = EngineGraph(to_onnx(decompose(traced.program, table), opset))
    elif engine_form is not None:
        engine = engine_graph(traced.program, engine_form, opset)
    on_progress("writing the graph", 1, 3)
    sidecar = _sidecar(checkpoint, traced, precision, form, content)
    return OnnxExport(content, sidecar, engine)


def engine_graph(program: torch.export.ExportedProgram, name: str, opset: int) -> EngineGraph:
    """A traced model with attention in the form ``name``, of ``opset`` or what the form needs."""
    form = FORMS[name]
    content = to_onnx(decompose(program, decompositions(form)), max(opset, form.opset))
    ours = len(attention_calls(program))
    if not ours:
        return EngineGraph(content, None, _attentions(content))
    return EngineGraph(content, form.name, ours if form.fusion == "none" else _attentions(content))


@dataclass(frozen=True)
class TracedCheckpoint:
    """A checkpoint's model at its precision as an exported program, our operators still whole."""

    program: torch.export.ExportedProgram
    metadata: CheckpointMetadata
    preprocessing: Preprocessing
    profile: Profile


def trace_checkpoint(
    checkpoint: Path,
    *,
    precision: str = "fp32",
    profile: Profile | None = None,
    size: int | None = None,
    gpu_memory_gib: float | None = None,
    on_progress: Progress = no_progress,
) -> TracedCheckpoint:
    """Trace a checkpoint; arguments and errors as :func:`make_onnx`."""
    dtype = precision_dtype(precision)
    on_progress("reading the checkpoint", 0, 3)
    model, metadata = load_model(checkpoint, backend="reference")
    preprocessing = metadata.preprocessing
    if size is not None:
        preprocessing = preprocessing.at_height(size)
    if profile is None:
        profile = Profile()
        if gpu_memory_gib is not None:
            profile = fitting(preprocessing, dtype, gpu_memory_gib)
    shape = (EXAMPLE_BATCH, 3, preprocessing.height, preprocessing.width)
    _check_size(model, shape)
    on_progress("tracing", 1, 3)
    precise = PreciseModel(model, dtype, metadata.model.num_classes, torch.zeros(shape)).eval()
    _check_finite(precise, checkpoint, precision)
    program = _trace(precise, torch.zeros(shape), profile)
    check_only_outputs_used(program)
    if gpu_memory_gib is not None:
        check_may_fit(program, dtype, preprocessing, profile, gpu_memory_gib)
    return TracedCheckpoint(program, metadata, preprocessing, profile)


def _check_size(model: nn.Module, shape: tuple[int, ...]) -> None:
    """Let the model itself refuse a size, on tensors without data."""
    try:
        with FakeTensorMode(allow_non_fake_inputs=True), torch.no_grad():
            model(torch.empty(shape))
    except ValueError as error:
        raise UserError(str(error)) from None


def _check_finite(model: nn.Module, checkpoint: Path, precision: str) -> None:
    for name, parameter in model.named_parameters():
        if not parameter.isfinite().all():
            raise UserError(
                f"{checkpoint}: {name.removeprefix('model.')} is not finite at {precision}; use "
                "another --precision, or train again"
            )


def _trace(
    model: nn.Module, images: torch.Tensor, profile: Profile
) -> torch.export.ExportedProgram:
    # A graph made for one batch size only would refuse all others.
    largest = max(profile.maximum, EXAMPLE_BATCH)
    batch = torch.export.Dim("batch", min=1, max=largest)
    with torch.no_grad():
        return torch.export.export(model, (images,), dynamic_shapes=({0: batch},), strict=False)


def decompose(
    program: torch.export.ExportedProgram, table: dict[Any, Callable[..., Any]]
) -> torch.export.ExportedProgram:
    """Replace our operators by what ``table`` makes of them; other models stay as traced."""
    if any(node.target in table for node in program.graph.nodes):
        program = program.run_decompositions(table)
    return program


def to_onnx(program: torch.export.ExportedProgram, opset: int) -> bytes:
    """The ONNX graph of a program of one input and one output, its batch dynamic."""
    import onnx

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice on the exporter's own internals
        exported = torch.onnx.export(
            program,
            dynamo=True,
            opset_version=opset,
            input_names=[INPUT_NAME],
            output_names=[OUTPUT_NAME],
            external_data=False,
            optimize=True,
            verbose=False,
        )
    assert exported is not None
    graph = exported.model_proto
    _name_batch(graph)
    onnx.checker.check_model(graph, full_check=True)
    return bytes(graph.SerializeToString())


def _attentions(content: bytes) -> int:
    """How many a graph of unblocked attention has: each is a node, or has one softmax."""
    import onnx

    nodes = onnx.load_from_string(content).graph.node
    return sum(node.op_type in ("Attention", "Softmax") for node in nodes)


def _name_batch(graph: Any) -> None:
    """Call the dynamic dimension ``batch`` wherever the exporter's symbol stands."""
    symbol = graph.graph.input[0].type.tensor_type.shape.dim[0].dim_param
    values = (*graph.graph.input, *graph.graph.output, *graph.graph.value_info)
    for value in values:
        for dimension in value.type.tensor_type.shape.dim:
            if dimension.dim_param:
                dimension.dim_param = dimension.dim_param.replace(symbol, "batch")


def _sidecar(
    checkpoint: Path,
    traced: TracedCheckpoint,
    precision: str,
    form: AttentionForm,
    content: bytes,
) -> Sidecar:
    metadata, preprocessing = traced.metadata, traced.preprocessing
    has_attention = bool(attention_calls(traced.program))
    return Sidecar(
        kind="onnx",
        file=FileIdentity.of_bytes("", content),
        checkpoint=FileIdentity.of(checkpoint),
        model=metadata.model.to_json(),
        task=metadata.task,
        class_names=metadata.class_names,
        preprocessing=preprocessing,
        precision=precision,
        quantisation=None,
        opset=OPSETS[precision],
        profile=traced.profile,
        attention=form.name if has_attention else None,
        tensors=tensors_of(preprocessing, len(metadata.class_names)),
        engine=None,
        versions={name: installed_version(name) for name in RECORDED_PACKAGES},
    )
