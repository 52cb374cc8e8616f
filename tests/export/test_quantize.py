"""Q/DQ pairs where they belong, and what they cost on films."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from hmc_fast import UserError
from hmc_fast.data import Film, FilmCache, FilmDataset, Preprocessing
from hmc_fast.export import OnnxExport, load, read_sidecar
from hmc_fast.export.builders import Builder, BuildRequest
from hmc_fast.export.onnx_export import EngineGraph, write_onnx
from hmc_fast.export.quantisation_cost import describe_cost, measure_cost
from hmc_fast.export.quantize import quantise
from hmc_fast.export.sidecar import FileIdentity

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


def saturating() -> bytes:
    """A convolution whose products are all as large as int8 has them."""
    weights = {
        "first": np.full((32, 3, 1, 1), 0.3, np.float32),
        "second": np.full((2, 32, 3, 3), 0.5, np.float32),
    }
    nodes = [
        helper.make_node("Conv", ["images", "first"], ["mixed"], name="mix"),
        helper.make_node("Relu", ["mixed"], ["positive"]),
        helper.make_node("Conv", ["positive", "second"], ["summed"], name="sum"),
        helper.make_node("GlobalAveragePool", ["summed"], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["logits"]),
    ]
    real = onnx.TensorProto.FLOAT
    made = helper.make_graph(
        nodes,
        "saturating",
        [helper.make_tensor_value_info("images", real, ["batch", 3, 64, 64])],
        [helper.make_tensor_value_info("logits", real, ["batch", 2])],
        [numpy_helper.from_array(values, name) for name, values in weights.items()],
    )
    model = helper.make_model(made, opset_imports=[helper.make_opsetid("", 20)], ir_version=9)
    return bytes(model.SerializeToString())


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_no_sum_of_products_saturates(
    graph: OnnxExport, checkpoint: Path, tmp_path: Path, runtime: str
) -> None:
    """With eight bits of weights OpenVINO gives 1 instead of 129.6, where there is no VNNI."""
    films = [torch.ones(3, 64, 64)]
    export = quantise(replace(graph, content=saturating()), films)
    write_onnx(export, checkpoint, tmp_path / "int8.onnx")
    logits = load(tmp_path / "int8.onnx", runtime=runtime)(torch.stack(films))
    torch.testing.assert_close(logits, torch.full((1, 2), 9 * 32 * 0.5 * 0.9), rtol=2e-2, atol=0)


def test_weights_have_seven_bits_on_a_cpu_and_eight_in_an_engine(
    graph: OnnxExport, images: list[torch.Tensor]
) -> None:
    both = replace(graph, engine=EngineGraph(graph.content))
    made = quantise(both, images[:1])
    assert made.engine is not None
    assert largest_weight(made.content) == 64
    assert largest_weight(made.engine.content) == 127


def largest_weight(content: bytes) -> int:
    """The largest magnitude that a quantised weight has in a graph."""
    nodes = onnx.load_from_string(content).graph
    constants = {t.name: numpy_helper.to_array(t) for t in nodes.initializer}
    largest = 0.0
    for node in nodes.node:
        if node.op_type != "QuantizeLinear" or node.input[0] not in constants:
            continue
        axis = next((a.i for a in node.attribute if a.name == "axis"), 0)
        weight, scale = np.moveaxis(constants[node.input[0]], axis, 0), constants[node.input[1]]
        per_channel = scale.reshape(-1, *[1] * (weight.ndim - 1))
        largest = max(largest, float(np.abs(weight / per_channel).max()))
    return round(largest)


def test_the_cost_is_measured_in_every_runtime_and_told(
    int8: OnnxExport, images: list[torch.Tensor], checkpoint: Path, tmp_path: Path
) -> None:
    counted: list[int] = []
    measured = measure_cost(int8, checkpoint, images, on_image=counted.append)
    assert sum(counted) == 3 * len(images)
    assert measured.sidecar.quantisation is not None
    facts = measured.sidecar.quantisation["measured"]
    assert facts["films"] == len(images)
    assert list(facts["runtimes"]) == ["onnxruntime", "openvino"]
    for runtime, cost in facts["runtimes"].items():
        assert 1e-4 < cost["max_logit_difference"] < 0.5, runtime
        assert cost["mean_logit_difference"] <= cost["max_logit_difference"]
        assert cost["flips"] >= cost["flips_beyond"] == 0
    assert [kept for _, kept in describe_cost(measured.sidecar)] == [True, True]
    write_onnx(measured, checkpoint, tmp_path / "int8.onnx")
    assert read_sidecar(tmp_path / "int8.onnx").quantisation == measured.sidecar.quantisation


def test_a_cost_past_the_bound_is_told(
    int8: OnnxExport, images: list[torch.Tensor], checkpoint: Path
) -> None:
    nodes = onnx.load_from_string(int8.content)
    (bias,) = [t for t in nodes.graph.initializer if t.name.endswith("fc.bias")]
    moved = numpy_helper.to_array(bias) + np.array([0, 3], np.float32)
    bias.CopyFrom(numpy_helper.from_array(moved, bias.name))
    wrong = replace(int8, content=nodes.SerializeToString())
    wrong = replace(
        wrong, sidecar=replace(wrong.sidecar, file=FileIdentity.of_bytes("", wrong.content))
    )
    told = list(describe_cost(measure_cost(wrong, checkpoint, images[:3]).sidecar))
    assert [kept for _, kept in told] == [False, False]
    assert all("a logit moves by up to 3." in line for line, _ in told)
    other = replace(int8, sidecar=replace(int8.sidecar, attention="equal-widths"))
    told = list(describe_cost(measure_cost(other, checkpoint, images[:1]).sidecar))
    assert [kept for _, kept in told] == [True, True]
    assert all("not measured (its attention is written for another" in line for line, _ in told)


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
