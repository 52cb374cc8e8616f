"""The graph computes what the model computes, in the types that were asked for."""

from collections.abc import Callable
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from samples import sampled
from torch import Tensor, nn

from hmc_fast import UserError, create_model, load_model
from hmc_fast.cli.app import run as run_command
from hmc_fast.export import OnnxExport, Profile, load, make_onnx, read_sidecar
from hmc_fast.export.onnx_export import OPSETS
from hmc_fast.export.precision import PreciseModel
from hmc_fast.models.registry import MODEL_NAMES

pytestmark = pytest.mark.systems  # a real runtime, exports of several models

SAMPLED = ("hmc_net_resnet18_lesions", "vit_b_16")
"""Models that CI exports at 224²; other tests export HMC-Net."""
SIDES = ((224, 224), (512, 512), (1024, 1024), (960, 544))
FLOAT, HALF = onnx.TensorProto.FLOAT, onnx.TensorProto.FLOAT16


def run(content: bytes, images: Tensor) -> Tensor:
    session = onnxruntime.InferenceSession(content)
    return torch.from_numpy(np.asarray(session.run(None, {"images": images.numpy()})[0]))


def test_fp32_logits(onnx_file: Path, checkpoint: Path) -> None:
    images = torch.randn(5, 3, 64, 64)
    with torch.inference_mode():
        expected = load_model(checkpoint).model(images)
    found = run(onnx_file.read_bytes(), images)
    assert (found - expected).abs().max() <= 1e-4
    assert expected.std() > 1e-2, "constant logits would prove nothing"


def test_fp16_logits(half_graph: OnnxExport, checkpoint: Path) -> None:
    images = torch.randn(5, 3, 64, 64)
    with torch.inference_mode():
        expected = load_model(checkpoint).model(images)
    assert (run(half_graph.content, images) - expected).abs().max() <= 2e-2


def test_logits_do_not_depend_on_the_batch(onnx_file: Path) -> None:
    images = torch.randn(64, 3, 64, 64)
    content = onnx_file.read_bytes()
    together = run(content, images)
    for start, count in ((0, 1), (1, 2), (3, 7), (63, 1)):
        alone = run(content, images[start : start + count])
        torch.testing.assert_close(alone, together[start : start + count], rtol=0, atol=1e-5)


def tensor_types(graph: Any) -> dict[str, int]:
    inferred = onnx.shape_inference.infer_shapes(graph, strict_mode=True).graph
    types = {v.name: v.type.tensor_type.elem_type for v in (*inferred.value_info, *inferred.input)}
    types |= {v.name: v.type.tensor_type.elem_type for v in inferred.output}
    return types | {t.name: t.data_type for t in inferred.initializer}


def test_softmax_and_logits_stay_fp32_in_a_half_graph(half_graph: OnnxExport) -> None:
    graph = onnx.load_from_string(half_graph.content)
    types = tensor_types(graph)
    nodes = list(graph.graph.node)
    softmax = [node for node in nodes if node.op_type == "Softmax"]
    assert len(softmax) == 4  # C3, C4, C5 and the one over both sources
    assert all(types[node.input[0]] == FLOAT for node in softmax)
    convolutions = [node for node in nodes if node.op_type == "Conv"]
    assert convolutions
    assert all(types[name] == HALF for node in convolutions for name in node.input)
    products = [node for node in nodes if node.op_type == "MatMul"]
    assert products
    assert all(types[name] == HALF for node in products for name in node.input)
    (classifier,) = [node for node in nodes if "logits" in node.output]
    assert all(types[name] == FLOAT for name in (*classifier.input, *classifier.output))
    assert not any(node.op_type == "BatchNormalization" for node in nodes)


def test_the_graph_has_the_contract_of_the_sidecar(half_graph: OnnxExport) -> None:
    graph = onnx.load_from_string(half_graph.content)
    assert [(s.domain, s.version) for s in graph.opset_import] == [("", 20)]
    described = {
        value.name: [d.dim_param or d.dim_value for d in value.type.tensor_type.shape.dim]
        for value in (*graph.graph.input, *graph.graph.output)
    }
    assert described == {"images": ["batch", 3, 64, 64], "logits": ["batch", 2]}
    sidecar = half_graph.sidecar
    assert {name: t["shape"] for name, t in sidecar.tensors.items()} == described
    assert sidecar.class_names == ("rest", "malignant")
    assert sidecar.preprocessing.height == 64


def test_batch_norm_is_folded_where_the_data_flows() -> None:
    class Net(nn.Module):
        """Registered in another order than it runs, with one norm that follows no convolution."""

        def __init__(self) -> None:
            super().__init__()
            self.after_second = nn.BatchNorm2d(4)
            self.first = nn.Conv2d(3, 4, 3)
            self.second = nn.Conv2d(4, 4, 3)
            self.alone = nn.BatchNorm2d(3)
            self.after_first = nn.BatchNorm2d(4)
            self.head = nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.after_first(self.first(self.alone(x))).relu()
            x = self.after_second(self.second(x))
            logits: Tensor = self.head(x.mean((2, 3)))
            return logits

    torch.manual_seed(0)
    net = Net().eval()
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.weight)
            module.running_var.uniform_(0.5, 2)  # type: ignore[union-attr]  # it has one
    x = torch.randn(2, 3, 16, 16)
    expected = net(x)
    precise = PreciseModel(net, torch.float64, 2, x).eval()
    assert sum(isinstance(m, nn.BatchNorm2d) for m in precise.modules()) == 1
    torch.testing.assert_close(precise(x), expected, rtol=1e-4, atol=1e-5)


def test_bf16_needs_a_later_opset(save_model: Callable[..., Path], tmp_path: Path) -> None:
    small = save_model(create_model("resnet18"), tmp_path / "small.safetensors")
    export = make_onnx(small, precision="bf16")
    graph = onnx.load_from_string(export.content)
    assert graph.opset_import[0].version == export.sidecar.opset == 22
    assert onnx.TensorProto.BFLOAT16 in {t.data_type for t in graph.graph.initializer}


@pytest.mark.parametrize("opset", sampled((18, 20, 23), [18]))
def test_opsets_from_the_exporters_lowest_to_the_newest_that_runtimes_take(
    checkpoint: Path, opset: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(OPSETS, "fp32", opset)
    export = make_onnx(checkpoint)
    graph = onnx.load_from_string(export.content)
    assert [(s.domain, s.version) for s in graph.opset_import] == [("", opset)]
    assert export.sidecar.opset == opset
    images = torch.randn(3, 3, 64, 64)
    with torch.inference_mode():
        expected = load_model(checkpoint).model(images)
    assert (run(export.content, images) - expected).abs().max() <= 1e-4


@pytest.mark.parametrize("name", sampled(MODEL_NAMES, SAMPLED))
def test_every_model_at_224(name: str, save_model: Callable[..., Path], tmp_path: Path) -> None:
    fixed_size = {"image_size": 224} if name == "vit_b_16" else {}
    path = save_model(create_model(name, **fixed_size), tmp_path / "m.safetensors", 224)  # type: ignore[arg-type]  # one keyword
    content = make_onnx(path).content
    images = torch.randn(3, 3, 224, 224)
    with torch.inference_mode():
        expected = load_model(path).model(images)
    torch.testing.assert_close(run(content, images), expected, atol=1e-3, rtol=1e-4)


@pytest.mark.parametrize(
    ("name", "sides", "batch"),
    sampled(
        product(MODEL_NAMES, SIDES, ("1,1,1", "1,4,8")), [("hmc_net_resnet18", (960, 544), "1,4,8")]
    ),
    ids=str,
)
def test_every_model_at_every_size_from_the_command_and_from_python(
    name: str, sides: tuple[int, int], batch: str, save_model: Callable[..., Path], tmp_path: Path
) -> None:
    fixed_size = {"image_size": sides[0]} if name == "vit_b_16" else {}
    if fixed_size and sides[0] != sides[1]:
        pytest.skip("this model takes square images alone")
    path = save_model(create_model(name, **fixed_size), tmp_path / "m.safetensors", sides)  # type: ignore[arg-type]  # one keyword
    out = tmp_path / "m.onnx"
    assert run_command(["export", "onnx", str(path), "--out", str(out), "--batch", batch]) == 0
    export = make_onnx(path, profile=Profile.parse(batch))
    assert out.read_bytes() == export.content
    assert read_sidecar(out).profile == export.sidecar.profile == Profile.parse(batch)
    images = torch.randn(2, 3, *sides)
    with torch.inference_mode():
        expected = load_model(path).model(images)
    torch.testing.assert_close(load(out)(images), expected, atol=1e-3, rtol=1e-4)


def test_another_size(checkpoint: Path) -> None:
    export = make_onnx(checkpoint, size=96, profile=Profile(1, 1, 1))
    images = torch.randn(2, 3, 96, 96)
    with torch.inference_mode():
        expected = load_model(checkpoint).model(images)
    assert (run(export.content, images) - expected).abs().max() <= 1e-4
    assert export.sidecar.preprocessing.height == export.sidecar.preprocessing.width == 96


def test_what_cannot_be_exported(
    checkpoint: Path, tmp_path: Path, save_model: Callable[..., Path]
) -> None:
    with pytest.raises(UserError, match="multiples of 32"):
        make_onnx(checkpoint, size=100)
    with pytest.raises(UserError, match="unknown precision 'fp64'"):
        make_onnx(checkpoint, precision="fp64")
    fixed = save_model(create_model("vit_b_16", image_size=64), tmp_path / "v.safetensors")
    with pytest.raises(UserError, match="built for 64x64 images"):
        make_onnx(fixed, size=96)
    large = create_model("resnet18")
    with torch.no_grad():
        large.fc.weight.fill_(1e9)
        large.layer1[0].conv1.weight.fill_(1e9)
    saved = save_model(large, tmp_path / "large.safetensors")
    with pytest.raises(UserError, match="not finite at fp16"):
        make_onnx(saved, precision="fp16")


@pytest.mark.parametrize(
    "text", ["", "1,8", "1,8,64,128", "a,b,c", "0,8,64", "8,4,64", "1,8,4", "-1,1,1", "1.5,2,3"]
)
def test_impossible_profiles(text: str) -> None:
    with pytest.raises(UserError, match="batch profile"):
        Profile.parse(text)
