"""The plugin in TensorRT's own registration code, its machine code, and its node in the graph.

The package ``tensorrt-cu13-bindings`` has the sources of ``tensorrt.plugin``, which check a schema,
carry shape expressions and call the plugin, but not the libraries behind the C++ module
``tensorrt``. In its place stands the module of TensorRT for RTX, with the few classes added that it
lacks. No engine is built this way.
"""

import enum
import importlib.util
import re
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any

import onnx
import pytest
import tensorrt_rtx

from hmc_fast import UserError, create_model
from hmc_fast.export import make_onnx, plugin
from hmc_fast.kernels.building import aot

pytestmark = pytest.mark.filterwarnings("ignore:invalid escape:DeprecationWarning")

SELF = [(49, 8, 64), (49, 8, 64), (49, 8, 256)]
CROSS = [(49, 4, 64), (784, 4, 64), (784, 4, 128), (196, 4, 64), (196, 4, 256)]


@dataclass
class DimensionExpression:
    """``tensorrt.IDimensionExpr``: a constant, or a formula of sides known at run time."""

    formula: str
    value: int | None

    def is_constant(self) -> bool:
        return self.value is not None

    def get_constant_value(self) -> int | None:
        return self.value


class ExpressionBuilder:
    """``tensorrt.IExprBuilder`` for sums and products."""

    def constant(self, value: int) -> DimensionExpression:
        return DimensionExpression(str(value), value)

    def operation(
        self, kind: Any, a: DimensionExpression, b: DimensionExpression
    ) -> DimensionExpression:
        sign = {"SUM": "+", "PROD": "*"}[kind.name]
        if a.value is None or b.value is None:
            return DimensionExpression(f"({a.formula} {sign} {b.formula})", None)
        return self.constant(a.value + b.value if sign == "+" else a.value * b.value)


class CreationRequest(enum.Enum):
    """``tensorrt.QuickPluginCreationRequest``."""

    UNKNOWN = 0
    PREFER_JIT = 1
    PREFER_AOT = 2
    STRICT_JIT = 3
    STRICT_AOT = 4


class Interface:
    """Base class of an interface that C++ would call."""


def load_plugin_package(folder: Path, rtx: ModuleType) -> tuple[ModuleType, Any]:
    """The stand-in for ``tensorrt``, and the real package ``tensorrt.plugin`` on top of it.

    Both are left in ``sys.modules``; ``folder`` is that of the installed bindings.
    """
    trt = ModuleType("tensorrt")
    trt.__spec__ = ModuleSpec("tensorrt", None, is_package=True)
    vars(trt).update({name: v for name, v in vars(rtx).items() if not name.startswith("__")})
    vars(trt).update(
        __path__=[],
        IDimensionExpr=DimensionExpression,
        ISymExpr=Interface,
        IPluginV3QuickAOTBuild=Interface,
        QuickPluginCreationRequest=CreationRequest,
    )
    sys.modules["tensorrt"] = trt
    source = folder / "plugin"
    spec = importlib.util.spec_from_file_location(
        "tensorrt.plugin", source / "__init__.py", submodule_search_locations=[str(source)]
    )
    assert spec is not None
    assert spec.loader is not None
    plugin = importlib.util.module_from_spec(spec)
    sys.modules["tensorrt.plugin"] = plugin
    spec.loader.exec_module(plugin)
    return trt, plugin


@pytest.fixture
def tensorrt(monkeypatch: pytest.MonkeyPatch) -> Iterator[tuple[Any, Any]]:
    """``tensorrt`` and ``tensorrt.plugin``, with our plugins registered for sm_90."""
    spec = importlib.util.find_spec("tensorrt_bindings")
    assert spec is not None
    (folder,) = spec.submodule_search_locations or ()
    before = {name: m for name, m in sys.modules.items() if name.split(".")[0] == "tensorrt"}
    monkeypatch.setattr(plugin, "_registered", set())
    trt, trtp = load_plugin_package(Path(folder), tensorrt_rtx)
    plugin.register_plugins(trt, trtp, "sm_90")
    sys.modules["tensorrt.plugin._tensor"].SymIntExpr._exprBuilder = ExpressionBuilder()
    yield trt, trtp
    for name in [name for name in sys.modules if name.split(".")[0] == "tensorrt"]:
        del sys.modules[name]
    sys.modules.update(before)


def definition(name: str) -> Any:
    return sys.modules["tensorrt.plugin._lib"].QDP_REGISTRY[f"hmc_fast::{name}"]


def inputs(tensorrt: tuple[Any, Any], shapes: list[tuple[int, ...]], dtype: str) -> list[Any]:
    """``TensorDesc`` of ``[batch, *shape]``, as TensorRT hands them to a plugin."""
    trt, trtp = tensorrt
    descs = []
    for shape in shapes:
        desc = trtp.TensorDesc()
        desc.dtype = getattr(trt.DataType, dtype)
        desc.shape_expr = trtp.ShapeExprs(4)
        desc.shape_expr[0] = trtp.ShapeExpr(DimensionExpression("batch", None))
        for axis, side in enumerate(shape, start=1):
            desc.shape_expr[axis] = trtp.ShapeExpr(side)
        descs.append(desc)
    return descs


def test_tensorrt_accepts_the_registration(tensorrt: tuple[Any, Any]) -> None:
    single, double = definition("attention"), definition("two_source_attention")
    assert single.input_tensor_names == ["q", "k", "v"]
    assert double.input_tensor_names == ["q", "k0", "v0", "k1", "v1"]
    assert (single.num_outputs, double.num_outputs) == (1, 2)
    plugin.register_plugins(*tensorrt, "sm_90")  # again is no harm
    with pytest.raises(UserError, match="one architecture in a process"):
        plugin.register_plugins(*tensorrt, "sm_80")


@pytest.mark.parametrize("dtype", ["HALF", "BF16", "FLOAT"])
@pytest.mark.parametrize(
    ("name", "shapes"), [("attention", SELF), ("two_source_attention", CROSS)], ids=str
)
def test_tensorrt_gets_code_and_launch_parameters(
    tensorrt: tuple[Any, Any], name: str, shapes: list[tuple[int, ...]], dtype: str
) -> None:
    descs = inputs(tensorrt, shapes, dtype)
    found = definition(name)
    outputs = found.register_func(*descs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    values = shapes[2::2]
    sides = [[side.constant_value() for side in list(out.shape_expr)[1:]] for out in outputs]
    assert sides == [[49, shapes[0][1], d_v] for _, _, d_v in values]
    entry, ptx, launch, integers = found.aot_impl_func(*descs, outputs, 0)

    declared = re.search(rf"\.entry {entry}\((.*?)\)", ptx, re.DOTALL)
    assert declared is not None
    kinds = re.findall(r"\.param \.(u64|u32)", declared[1])
    tokens = [49, *(n for n, _, _ in values)]
    assert kinds == ["u64"] * len(shapes) + ["u32"] * len(tokens) + ["u64"] * len(values)
    assert [value._expr.value for value in integers] == tokens
    assert launch.grid_x._expr.formula.startswith("(batch * ")
    threads = int(re.search(r"\.reqntid (\d+)", ptx)[1])  # type: ignore[index]
    assert launch.block_x._expr.value == threads
    assert 0 < launch.shared_mem._expr.value <= 227 * 1024


def test_only_the_batch_may_vary(tensorrt: tuple[Any, Any]) -> None:
    descs = inputs(tensorrt, SELF, "HALF")
    descs[1].shape_expr[1] = tensorrt[1].ShapeExpr(DimensionExpression("tokens", None))
    found = definition("attention")
    with pytest.raises(ValueError, match="k0 has a dynamic number of tokens"):
        found.aot_impl_func(*descs, (found.register_func(*descs),), 0)


@pytest.mark.systems
def test_attention_becomes_a_node_of_the_plugin(checkpoint: Path) -> None:
    graphs = make_onnx(checkpoint, precision="fp16", plugin=True)
    assert graphs.engine is not None
    nodes = onnx.load_from_string(graphs.engine.content).graph.node
    ours = [node for node in nodes if node.domain == plugin.NAMESPACE]
    assert [node.op_type for node in ours] == ["attention"] * 3 + ["two_source_attention"]
    assert [(len(node.input), len(node.output)) for node in ours] == [(3, 1)] * 3 + [(5, 2)]
    for node in ours:
        attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
        assert attributes == {"plugin_namespace": b"hmc_fast", "plugin_version": b"1", "aot": 1}
    assert not any(node.op_type == "Softmax" for node in nodes)
    plain = onnx.load_from_string(graphs.content).graph.node
    assert not any(node.domain == plugin.NAMESPACE for node in plain)
    assert sum(node.op_type == "Softmax" for node in plain) == 4


def test_a_plugin_where_there_is_none(
    checkpoint: Path, save_model: Callable[..., Path], tmp_path: Path, fails: Callable[..., str]
) -> None:
    out = tmp_path / "m.engine"
    line = fails("export", "tensorrt", checkpoint, "--out", out, "--plugin", "--target", "sm_89")
    assert "--plugin: tensorrt-rtx embeds no kernels of others" in line
    line = fails("export", "tensorrt", checkpoint, "--out", out, "--plugin", "--version-compatible")
    assert "its kernels are compiled for one GPU" in line
    assert not list(tmp_path.iterdir())
    with pytest.raises(UserError, match="has no attention for a plugin"):
        make_onnx(save_model(create_model("resnet18"), tmp_path / "plain.st"), plugin=True)


def test_a_kernel_that_needs_tritons_scratch_is_refused() -> None:
    ptx = ".entry f(\n.param .u64 f_param_0,\n.param .u64 f_param_1\n)\n{ ld.param f_param_1; }"
    with pytest.raises(RuntimeError, match="reads its scratch pointer f_param_1"):
        aot._without_scratch(ptx, "f", 1)
