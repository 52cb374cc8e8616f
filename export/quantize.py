"""Explicit quantisation: Q/DQ pairs in the graph, their scales from real films.

TensorRT 11 has neither a calibrator nor INT8 flags, so what is quantised stands in the graph.
Convolutions and linear layers are; attention's own products, softmax and the layer that gives the
logits are not. Scales are symmetric, per channel for weights, as TensorRT demands.

In the graph for CPUs the weights of int8 have seven bits. A processor with AVX2 and without VNNI
adds two products in 16 bits, which saturate: OpenVINO shifts activations to 0 ... 255, and
``2·255·|w|`` is at most 32767 for ``|w| ≤ 64`` alone. An engine's graph has all eight.
"""

import io
import logging
import tempfile
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import Tensor

from hmc_fast.environment import installed_version
from hmc_fast.errors import UserError
from hmc_fast.export.onnx_export import OnnxExport
from hmc_fast.export.packages import need
from hmc_fast.export.sidecar import INPUT_NAME, NUMBER_FORMATS, OUTPUT_NAME, FileIdentity

QUANTISED_OPS = ("Conv", "Gemm", "MatMul")


def quantise(
    export: OnnxExport,
    images: Sequence[Tensor],
    number_format: str = "int8",
    *,
    on_image: Callable[[int], object] = lambda count: None,
) -> OnnxExport:
    """``export`` with Q/DQ pairs around its convolutions and linear layers.

    Args:
        export: an fp32 graph.
        images: ``[3, H, W]``, prepared as the model wants them: films it was trained on, or like
            them. ``int8`` takes the extremes of every activation, ``fp8`` its distribution.
        number_format: ``int8`` or ``fp8`` (E4M3).
        on_image: told of every film read.

    Raises:
        UserError: the format is unknown, the graph is not fp32, there is no film, or onnxruntime is
            missing.
    """
    if number_format not in NUMBER_FORMATS:
        raise UserError(
            f"unknown format {number_format!r}; choose one of {', '.join(NUMBER_FORMATS)}"
        )
    if export.sidecar.precision != "fp32":
        raise UserError(
            f"a graph in {export.sidecar.precision} cannot be quantised to {number_format}; leave "
            "--precision at fp32, which is what is not quantised"
        )
    need("onnxruntime.quantization", "onnx", extra="export")
    if not images:
        raise UserError("quantisation needs at least one film to calibrate on")
    content = _quantised(export.content, images, number_format, on_image, for_cpu=True)
    sidecar = _describe(export, content, number_format, len(images))
    engine = export.engine
    if engine is not None:
        for_engine = _quantised(engine.content, images, number_format, on_image, for_cpu=False)
        engine = replace(engine, content=for_engine)
    return OnnxExport(content, sidecar, engine)


def _quantised(
    content: bytes,
    images: Sequence[Tensor],
    number_format: str,
    on_image: Callable[[int], object],
    *,
    for_cpu: bool,
) -> bytes:
    quantization, onnx = need("onnxruntime.quantization", "onnx", extra="export")
    graph = onnx.load_from_string(content)

    def feeds() -> Iterator[dict[str, Any]]:
        for image in images:
            on_image(1)
            yield {INPUT_NAME: image[None].numpy()}

    class Films(quantization.CalibrationDataReader):  # type: ignore[misc, name-defined]
        """The films, one at a time."""

        def __init__(self) -> None:
            self._feeds = feeds()

        def get_next(self) -> dict[str, Any] | None:
            return next(self._feeds, None)

    with tempfile.TemporaryDirectory() as folder, _quiet():
        target = Path(folder) / "quantised.onnx"
        quantization.quantize_static(
            graph,
            target,
            Films(),
            nodes_to_quantize=_quantised_nodes(graph),
            op_types_to_quantize=list(QUANTISED_OPS),
            reduce_range=for_cpu and number_format == "int8",
            **_settings(quantization, number_format),
        )
        return target.read_bytes()


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence the quantiser's advice and prints, which do not concern our graphs."""
    logger = logging.getLogger()
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def _settings(quantization: Any, number_format: str) -> dict[str, Any]:
    if number_format == "int8":
        number, method = quantization.QuantType.QInt8, quantization.CalibrationMethod.MinMax
    else:
        number = quantization.QuantType.QFLOAT8E4M3FN
        method = quantization.CalibrationMethod.Distribution
    return {
        "quant_format": quantization.QuantFormat.QDQ,
        "activation_type": number,
        "weight_type": number,
        "calibrate_method": method,
        "per_channel": number_format == "int8",
        "extra_options": {
            "ActivationSymmetric": True,
            "WeightSymmetric": True,
            "AddQDQPairToWeight": True,
            "QuantizeBias": False,
            "OpTypesToExcludeOutputQuantization": list(QUANTISED_OPS),
        },
    }


def _quantised_nodes(graph: Any) -> list[str]:
    """Nodes with a weight among their inputs, but for the one that gives the logits."""
    weights = {tensor.name for tensor in graph.graph.initializer}
    layers = [
        node
        for node in graph.graph.node
        if node.op_type in QUANTISED_OPS and weights.intersection(node.input)
    ]
    return [node.name for node in layers if OUTPUT_NAME not in node.output]


def _describe(export: OnnxExport, content: bytes, number_format: str, films: int) -> Any:
    method = "extremes" if number_format == "int8" else "distribution"
    return replace(
        export.sidecar,
        file=FileIdentity.of_bytes("", content),
        quantisation={"format": number_format, "calibration": method, "films": films},
        versions={**export.sidecar.versions, "onnxruntime": installed_version("onnxruntime")},
    )
