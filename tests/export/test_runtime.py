"""Loading: the sidecar first, then a callable like the model."""

import json
import re
import shutil
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from hmc_fast import UserError, load_model
from hmc_fast.data import Preprocessing
from hmc_fast.export import Profile, load, read_sidecar
from hmc_fast.export.onnx_export import OnnxExport, write_onnx
from hmc_fast.export.runtime import EngineCall
from hmc_fast.export.sidecar import EngineInfo, FileIdentity, sidecar_path, write_artefacts


@pytest.fixture
def artefact(onnx_file: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    for path in (onnx_file, sidecar_path(onnx_file)):
        shutil.copy(path, tmp_path)
    return tmp_path / onnx_file.name


def change_sidecar(artefact: Path, **changes: Any) -> None:
    path = sidecar_path(artefact)
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def test_the_callable_is_like_the_model(onnx_file: Path, checkpoint: Path) -> None:
    runner = load(onnx_file)
    model = load_model(checkpoint).model
    images = torch.randn(3, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(runner(images), model(images), rtol=0, atol=1e-4)
    assert runner(images).dtype == torch.float32
    assert runner.sidecar.class_names == ("rest", "malignant")


def test_batches_outside_the_profile_are_split_and_filled(
    onnx_file: Path, checkpoint: Path, tmp_path: Path
) -> None:
    sidecar = replace(read_sidecar(onnx_file), profile=Profile(4, 4, 8))
    narrow = tmp_path / "narrow.onnx"
    write_onnx(OnnxExport(onnx_file.read_bytes(), sidecar), checkpoint, narrow)
    images = torch.randn(17, 3, 64, 64)
    expected = load(onnx_file)(images)
    for count in (1, 3, 8, 9, 17):
        found = load(narrow)(images[:count])
        torch.testing.assert_close(found, expected[:count], rtol=0, atol=1e-5)


@pytest.mark.parametrize("shape", [(3, 64, 64), (1, 3, 32, 64), (1, 1, 64, 64), (0, 3, 64, 64)])
def test_other_shapes_are_refused(onnx_file: Path, shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="this artefact takes"):
        load(onnx_file)(torch.zeros(shape))


def test_precision_and_preprocessing_that_were_asked_for(onnx_file: Path) -> None:
    load(onnx_file, precision="fp32", preprocessing=Preprocessing.square(64))
    with pytest.raises(UserError, match=r"computes in fp32, but fp16 .* hmc-fast export onnx"):
        load(onnx_file, precision="fp16")
    with pytest.raises(UserError, match=r"expects 64x64.*prepared as 96x96.*--size 96"):
        load(onnx_file, preprocessing=Preprocessing.square(96))
    with pytest.raises(UserError, match=r"mean \(0.0, 0.0, 0.0\)"):
        load(onnx_file, preprocessing=Preprocessing(64, 64, mean=(0.0, 0.0, 0.0)))


def test_the_file_is_not_the_one_meant(artefact: Path) -> None:
    content = artefact.read_bytes()
    for cut in (0, 100, len(content) - 1):
        artefact.write_bytes(content[:cut])
        with pytest.raises(UserError, match=rf"is truncated, {cut} of the {len(content)} bytes"):
            load(artefact)
    for other in (b"x" * len(content), content + b"x", content[:-1] + b"\0"):
        artefact.write_bytes(other)
        with pytest.raises(UserError, match="is not the file that its sidecar"):
            load(artefact)


def test_a_sidecar_that_is_missing_or_damaged(artefact: Path, tmp_path: Path) -> None:
    sidecar = sidecar_path(artefact)
    original = sidecar.read_text()
    sizeless = re.sub(r'"size_bytes": \d+', '"size_bytes": null', original)
    for damaged in ("{}", "[]", "3", original.replace('"opset"', '"upset"'), sizeless):
        sidecar.write_text(damaged)
        with pytest.raises(UserError, match="is no sidecar of ours or is damaged"):
            load(artefact)
    sidecar.write_text(original[:100])
    with pytest.raises(UserError, match="cannot be read as JSON"):
        load(artefact)
    sidecar.write_text(original)
    change_sidecar(artefact, format=2)
    with pytest.raises(UserError, match="has format 2, this release reads 1"):
        load(artefact)
    sidecar.unlink()
    with pytest.raises(UserError, match="has no sidecar model.onnx.json beside it"):
        load(artefact)
    with pytest.raises(UserError, match="no such file"):
        load(tmp_path / "none.onnx")
    with pytest.raises(UserError, match="is a folder"):
        load(tmp_path)


NESTED = "[" * 100_000
DAMAGE: list[tuple[str, str, str]] = [
    ('"task": "malignant"', '"task": "sight"', "unknown task 'sight'"),
    ('"precision": "fp32"', '"precision": "fp64"', "precision: "),
    ('"precision": "fp32"', '"precision": 32', "precision: "),
    ('"kind": "onnx"', '"kind": "engine"', "engine: contradicts the kind"),
    ('"kind": "onnx"', '"kind": "script"', "kind: "),
    ('"quantisation": null', '"quantisation": {"format": "int3"}', "quantisation.format: "),
    ('"attention": "blocks"', '"attention": "rows"', "attention: is none of"),
    ('"opset": 20', '"opset": "20"', "opset: "),
    ('"opset": 20', '"opset": true', "opset: "),
    ('"opset": 20', '"opset": 1e999', "not JSON compliant"),
    ('"minimum": 1', '"minimum": 0', "needs 1 <= min"),
    ('"height": 64', '"height": 64.5', "preprocessing.height: "),
    ('"height": 64', '"height": 96', "tensors: contradict"),
    ('"height": 64', '"height": 65', "multiples of 32"),
    ('"height": 64', '"heights": 64', "preprocessing.height"),
    ('"trunk": "resnet18"', '"trunk": ["resnet18"]', "trunk: "),
    ('"num_classes": 2', '"num_classes": 3', "model.num_classes: "),
    ('"name": "hmc_net_resnet18"', '"name": "../../x"', "model.name: "),
    ('"name": "model.onnx"', '"name": "../model.onnx"', "file.name: "),
    ('"name": "model.onnx"', '"name": ""', "file.name: "),
    ('"verified": null', '"verified": Infinity', "is no JSON number"),
    ('"verified": null', f'"verified": {NESTED}', "nested too deeply"),
    ('"verified": null', '"verified": null, "extra": 1', "extra: "),
    ('"malignant"\n  ]', '"malignant", "x"\n  ]', "class_names: "),
]


@pytest.mark.parametrize(("old", "new", "message"), DAMAGE, ids=lambda text: text[:24])
def test_every_field_of_a_sidecar_is_checked(
    artefact: Path, old: str, new: str, message: str
) -> None:
    path = sidecar_path(artefact)
    text = path.read_text()
    assert text.count(old) >= 1, old
    path.write_text(text.replace(old, new, 1))
    with pytest.raises(UserError, match=re.escape(message)) as caught:
        read_sidecar(artefact)
    assert len(str(caught.value)) < 500
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_sizes_that_contradict_the_graph(artefact: Path, runtime: str) -> None:
    path = sidecar_path(artefact)
    path.write_text(
        re.sub(r"\b64(,?)\n", r"96\1\n", path.read_text()).replace('"maximum": 96', '"maximum": 64')
    )
    assert read_sidecar(artefact).preprocessing.height == 96
    with pytest.raises(UserError, match=r"holds .*64, 64.* its sidecar says .*96, 96"):
        load(artefact, runtime=runtime)


def test_a_graph_of_a_later_opset(artefact: Path, checkpoint: Path) -> None:
    import onnx

    graph = onnx.load_from_string(artefact.read_bytes())
    graph.opset_import[0].version = 99
    export = OnnxExport(graph.SerializeToString(), read_sidecar(artefact))
    write_onnx(export, checkpoint, artefact)
    with pytest.raises(UserError, match="ONNX Runtime cannot run it here") as caught:
        load(artefact)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_no_silent_fallback_to_the_cpu(onnx_file: Path) -> None:
    with pytest.raises(UserError, match="has no CUDAExecutionProvider"):
        load(onnx_file, device="cuda")


@pytest.fixture
def engine(artefact: Path) -> Callable[..., Path]:
    """A sidecar for a file that no builder made: loading must refuse by the sidecar alone."""

    def make(**changes: Any) -> Path:
        import tensorrt_rtx

        graph = read_sidecar(artefact)
        version = tensorrt_rtx.__version__
        info = EngineInfo("tensorrt-rtx", version, ("sm_89",), False, False, graph.file)
        info = replace(info, **changes)
        path = artefact.with_name("model.engine")
        identity = FileIdentity.of_bytes(path.name, b"an engine")
        sidecar = replace(graph, kind="engine", engine=info, file=identity)
        write_artefacts([(path, b"an engine", sidecar)])
        return path

    return make


def test_an_engine_of_another_version(engine: Callable[..., Path]) -> None:
    with pytest.raises(
        UserError,
        match=r"built by tensorrt-rtx 1.0.0.1, installed is .*; rebuild it: hmc-fast export "
        r"tensorrt .* --precision fp32 --size 64 --batch 1,8,64 --flavour tensorrt-rtx "
        r"--target sm_89",
    ):
        load(engine(version="1.0.0.1"))
    with pytest.raises(UserError, match="names no builder known here"):
        load(engine(flavour="openvino"))


def test_an_engine_for_another_gpu(
    engine: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda *device: (8, 6))
    with pytest.raises(
        UserError, match=r"was built for sm_89, this GPU is sm_86; .* --target sm_86"
    ):
        load(engine())


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_an_engine_is_run_by_its_own_runtime_alone(
    engine: Callable[..., Path], runtime: str
) -> None:
    message = rf"is an engine of tensorrt-rtx, which {runtime} does not run; load model.onnx with"
    with pytest.raises(UserError, match=message):
        load(engine(), runtime=runtime)


class FakeContext:
    """TensorRT's, without a GPU: it does what it is told to but for one call, which it refuses."""

    def __init__(self, refused: str) -> None:
        self.refused = refused
        self.ran = False

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        return self.refused != "shape"

    def set_tensor_address(self, name: str, address: int) -> bool:
        return self.refused != name

    def execute_async_v3(self, stream: int) -> bool:
        self.ran = True
        return self.refused != "run"


class FakeLogger:
    ERROR = 1

    def __init__(self, severity: int) -> None: ...


def fake_tensorrt(context: FakeContext | None, *, refuses: bool = False) -> Any:
    """As much of the module ``tensorrt`` as a call takes."""
    engine = SimpleNamespace(
        create_execution_context=lambda: context,
        get_tensor_dtype=lambda name: SimpleNamespace(name="FLOAT"),
        get_tensor_shape=lambda name: (-1, 2),
    )
    runtime = SimpleNamespace(deserialize_cuda_engine=lambda content: None if refuses else engine)
    return SimpleNamespace(Runtime=lambda logger: runtime, Logger=FakeLogger)


@pytest.fixture
def pretended_gpu(monkeypatch: pytest.MonkeyPatch) -> torch.device:
    monkeypatch.setattr(torch.cuda, "device", lambda device: nullcontext())
    stream = SimpleNamespace(cuda_stream=7)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device: stream)
    return torch.device("cpu")


@pytest.mark.parametrize(
    ("refused", "message"),
    [
        ("shape", r"refuses images of shape \(2, 3, 64, 64\)"),
        ("images", "refuses the address of its images"),
        ("logits", "refuses the address of its logits"),
        ("run", "the engine did not run"),
    ],
)
def test_a_call_that_tensorrt_refuses_gives_no_logits(
    pretended_gpu: torch.device, refused: str, message: str
) -> None:
    """TensorRT says no by returning False, and would run with the shape of the call before."""
    images = torch.zeros(2, 3, 64, 64)
    assert EngineCall(fake_tensorrt(FakeContext("")), b"", pretended_gpu)(images).shape == (2, 2)
    context = FakeContext(refused)
    call = EngineCall(fake_tensorrt(context), b"", pretended_gpu)
    with pytest.raises(RuntimeError, match=message):
        call(images)
    assert context.ran == (refused == "run")


def test_an_engine_that_the_gpu_does_not_take(pretended_gpu: torch.device) -> None:
    with pytest.raises(UserError, match="refuses the engine on this GPU"):
        EngineCall(fake_tensorrt(FakeContext(""), refuses=True), b"", pretended_gpu)
    with pytest.raises(UserError, match="no memory on this GPU"):
        EngineCall(fake_tensorrt(None), b"", pretended_gpu)
