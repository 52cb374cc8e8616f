"""Q/DQ pairs where they belong, and what they cost on films."""

from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper

from hmc_fast import UserError
from hmc_fast.data import Film, FilmCache, FilmDataset, Preprocessing
from hmc_fast.export import OnnxExport, load, read_sidecar
from hmc_fast.export.builders import Builder, BuildRequest
from hmc_fast.export.onnx_export import write_onnx
from hmc_fast.export.quantize import quantise

pytestmark = pytest.mark.systems  # a real builder


@pytest.fixture(scope="module")
def graph(onnx_file: Path) -> OnnxExport:
    return OnnxExport(onnx_file.read_bytes(), read_sidecar(onnx_file))


@pytest.fixture(scope="module")
def images(phantoms: list[Film]) -> list[torch.Tensor]:
    dataset = FilmDataset(phantoms[:12], [0] * 12, FilmCache(Preprocessing.square(64)))
    return [image for image, _ in dataset]


@pytest.fixture(scope="module")
def int8(graph: OnnxExport, images: list[torch.Tensor]) -> OnnxExport:
    return quantise(graph, images, "int8")


def test_weighted_layers_are_quantised_symmetrically_and_nothing_else(int8: OnnxExport) -> None:
    nodes = onnx.load_from_string(int8.content).graph
    producer = {output: node for node in nodes.node for output in node.output}
    constants = {t.name: numpy_helper.to_array(t) for t in nodes.initializer}

    def quantised(name: str) -> bool:
        return name in producer and producer[name].op_type == "DequantizeLinear"

    for node in nodes.node:
        if node.op_type == "Conv":
            assert quantised(node.input[0])
            assert quantised(node.input[1])
        if "logits" in node.output:
            assert not any(map(quantised, node.input))
        if node.op_type == "Softmax":
            assert not any(map(quantised, node.input))
        if node.op_type == "QuantizeLinear":
            assert constants[node.input[2]].dtype == np.int8
            assert not constants[node.input[2]].any()
    products = [node for node in nodes.node if node.op_type == "MatMul"]
    linear = [node for node in products if quantised(node.input[1])]
    attention = [node for node in products if not any(map(quantised, node.input))]
    assert len(linear) == len(attention) == 10
    assert int8.sidecar.quantisation == {
        "format": "int8",
        "calibration": "extremes",
        "films": 12,
    }
    assert int8.sidecar.numerics == "int8"


def test_the_cost_is_real_and_bounded(
    int8: OnnxExport,
    graph: OnnxExport,
    images: list[torch.Tensor],
    checkpoint: Path,
    tmp_path: Path,
) -> None:
    write_onnx(graph, checkpoint, tmp_path / "fp32.onnx")
    write_onnx(int8, checkpoint, tmp_path / "int8.onnx")
    batch = torch.stack(images)
    exact = load(tmp_path / "fp32.onnx")(batch)
    cost = (load(tmp_path / "int8.onnx", precision="int8")(batch) - exact).abs().max()
    assert 1e-4 < cost < 0.5 * exact.std() + 0.3


@pytest.mark.parametrize("number_format", ["int8", "fp8"])
def test_the_builder_takes_it(
    graph: OnnxExport, images: list[torch.Tensor], number_format: str
) -> None:
    quantised = quantise(graph, images[:4], number_format)
    request = BuildRequest(quantised.sidecar.profile, ("sm_89",), None, False, False)
    built = Builder("tensorrt-rtx").build(quantised.content, request, lambda *report: None)
    assert built.tensors == quantised.sidecar.tensors
    assert len(built.content) < 0.6 * len(graph.content)


def test_what_cannot_be_quantised(
    graph: OnnxExport, half_graph: OnnxExport, images: list[torch.Tensor]
) -> None:
    with pytest.raises(UserError, match="unknown format 'int4'"):
        quantise(graph, images, "int4")
    with pytest.raises(UserError, match="a graph in fp16 cannot be quantised"):
        quantise(half_graph, images)
    with pytest.raises(UserError, match="at least one film"):
        quantise(graph, [])
