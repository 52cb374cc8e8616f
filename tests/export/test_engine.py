"""Real engines from the real builder, on a machine without a GPU."""

import importlib.util
import math
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from samples import sampled

from hmc_fast import UserError, create_model
from hmc_fast.cli.app import run
from hmc_fast.data import Preprocessing
from hmc_fast.export import (
    EngineOptions,
    OnnxExport,
    Profile,
    export_engine,
    load,
    make_onnx,
    read_sidecar,
)
from hmc_fast.export.builders import Builder, BuildLog, BuildRequest
from hmc_fast.export.engine import check_options, write_engine
from hmc_fast.export.engine_form import CANDIDATES, engine_form
from hmc_fast.export.memory import (
    GIB,
    PIXEL_BYTES,
    USABLE_SHARE,
    check_may_fit,
    describe_build,
    fitting,
    not_fused,
)
from hmc_fast.export.onnx_export import EngineGraph, trace_checkpoint
from hmc_fast.export.progress import BuildProgress

RTX = EngineOptions("tensorrt-rtx", ("sm_89",))
MATRIX = [
    (model, size, precision)
    for model in ("hmc_net", "resnet50_hsa", "resnet50_msca", "resnet50", "vgg16", "vit_b_16")
    for size, precision in ((224, "fp16"), (512, "fp32"))
]
SAMPLED = [("vit_b_16", 224, "fp16")]
"""HMC-Net is built by other tests, in fp32 too."""
MEMORY_LIMIT_MIB = 8 * 1024


def build(graph: OnnxExport, **changes: Any) -> Any:
    request = {
        "profile": graph.sidecar.profile,
        "targets": ("sm_89",),
        "timing_cache": None,
        "version_compatible": False,
        "hardware_compatible": False,
        **changes,
    }
    return Builder("tensorrt-rtx").build(
        graph.engine.content, BuildRequest(**request), lambda what, done, total: None
    )


@pytest.fixture(scope="module")
def engine_file(
    half_graph: OnnxExport, checkpoint: Path, tmp_path_factory: pytest.TempPathFactory
) -> Path:
    path = tmp_path_factory.mktemp("engine") / "model.engine"
    write_engine(half_graph, checkpoint, path, RTX)
    return path


def test_engine_graph_and_sidecars_are_written(engine_file: Path, half_graph: OnnxExport) -> None:
    names = {path.name for path in engine_file.parent.iterdir()}
    assert names == {"model.engine", "model.engine.json", "model.onnx", "model.onnx.json"}
    sidecar = read_sidecar(engine_file)
    assert sidecar.kind == "engine"
    assert sidecar.precision == "fp16"
    assert sidecar.profile == Profile(1, 4, 64)
    assert sidecar.tensors == {
        "images": {"dtype": "float32", "shape": ["batch", 3, 64, 64]},
        "logits": {"dtype": "float32", "shape": ["batch", 2]},
    }
    assert sidecar.engine is not None
    assert sidecar.engine.flavour == "tensorrt-rtx"
    assert sidecar.engine.targets == ("sm_89",)
    assert sidecar.engine.onnx == read_sidecar(engine_file.with_suffix(".onnx")).file
    assert engine_file.with_suffix(".onnx").read_bytes() == half_graph.content


def test_the_runtime_tells_the_engine_from_other_files(engine_file: Path) -> None:
    import tensorrt_rtx as trt

    runtime = trt.Runtime(trt.Logger(trt.Logger.INTERNAL_ERROR))
    malformed = int(trt.EngineInvalidityDiagnostics.MALFORMED_ENGINE)
    _, diagnostics = runtime.get_engine_validity(engine_file.read_bytes())
    assert not diagnostics & malformed
    _, diagnostics = runtime.get_engine_validity(b"no engine" * 1000)
    assert diagnostics & malformed


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_without_a_driver_loading_says_what_runs_instead(engine_file: Path) -> None:
    with pytest.raises(UserError, match=r"needs an NVIDIA GPU .* load model.onnx instead"):
        load(engine_file)


@pytest.mark.gpu
def test_the_engine_deserialises_and_agrees(engine_file: Path, half_graph: OnnxExport) -> None:
    import tensorrt_rtx as trt

    major, minor = torch.cuda.get_device_capability()
    if not hasattr(trt.ComputeCapability, f"SM{major}{minor}"):
        pytest.skip(f"tensorrt-rtx does not know sm_{major}{minor}")
    path = engine_file.with_name("here.engine")
    checkpoint = engine_file.parent / read_sidecar(engine_file).checkpoint.name
    options = EngineOptions("tensorrt-rtx", (f"sm_{major}{minor}",))
    write_engine(half_graph, checkpoint, path, options)
    images = torch.randn(70, 3, 64, 64)
    expected = load(path.with_suffix(".onnx"))(images)
    assert (load(path)(images).cpu() - expected).abs().max() <= 2e-2


@pytest.mark.tensorrt
def test_the_full_tensorrt_by_the_same_code(
    half_graph: OnnxExport, checkpoint: Path, tmp_path: Path
) -> None:
    path = tmp_path / "model.engine"
    if not torch.cuda.is_available():
        with pytest.raises(UserError, match="builds on the GPU that it builds for"):
            write_engine(half_graph, checkpoint, path, EngineOptions("tensorrt"))
        return
    cache = tmp_path / "timing.cache"
    sidecar = write_engine(
        half_graph, checkpoint, path, EngineOptions("tensorrt", timing_cache=cache)
    )
    assert sidecar.engine is not None
    assert cache.stat().st_size
    images = torch.randn(70, 3, 64, 64)
    expected = load(path.with_suffix(".onnx"))(images)
    assert (load(path)(images).cpu() - expected).abs().max() <= 2e-2


@pytest.mark.systems
@pytest.mark.parametrize(("model", "size", "precision"), sampled(MATRIX, SAMPLED))
def test_every_model_builds(
    model: str, size: int, precision: str, save_model: Callable[..., Path], tmp_path: Path
) -> None:
    fixed_size = {"image_size": size} if model == "vit_b_16" else {}
    path = save_model(create_model(model, **fixed_size), tmp_path / "m.safetensors", size)  # type: ignore[arg-type]  # one keyword
    graph = make_onnx(
        path, precision=precision, profile=Profile(1, 8, 64), engine_form="equal-widths"
    )
    path.unlink()
    built = build(graph)
    assert len(built.content) > 2**20
    assert built.tensors == graph.sidecar.tensors
    assert built.tensors["images"]["shape"] == ["batch", 3, size, size]


def test_several_targets_and_the_default(half_graph: OnnxExport) -> None:
    builder = Builder("tensorrt-rtx")
    default = builder.choose_targets(())
    assert "sm_75" in builder.known_targets()
    assert "sm_75" not in default
    assert {"sm_80", "sm_86", "sm_89", "sm_120"} <= set(default)
    assert build(half_graph, targets=default).content != build(half_graph).content


def test_turing_is_refused_with_the_builders_reason(half_graph: OnnxExport) -> None:
    with pytest.raises(UserError, match="tensorrt-rtx cannot build it: .*SM75"):
        build(half_graph, targets=("sm_75",))


def test_a_graph_that_the_parser_refuses(half_graph: OnnxExport) -> None:
    damaged = replace(half_graph, engine=EngineGraph(half_graph.content[:-5000]))
    with pytest.raises(UserError, match="tensorrt-rtx cannot read the graph"):
        build(damaged)


def test_what_the_builder_lacks_is_refused_before_any_work(
    checkpoint: Path, tmp_path: Path
) -> None:
    for options, message in (
        (EngineOptions("tensorrt-rtx", ("sm_90",)), "unknown target 'sm_90'; .* sm_89"),
        (EngineOptions("tensorrt-rtx", ("hopper",)), "unknown target 'hopper'"),
        (EngineOptions("trt"), "unknown flavour 'trt'"),
        (EngineOptions("tensorrt-rtx", timing_cache=tmp_path / "c"), "times nothing"),
        (EngineOptions("tensorrt-rtx", version_compatible=True), "has no such engines"),
        (EngineOptions("tensorrt-rtx", hardware_compatible=True), "several architectures instead"),
    ):
        with pytest.raises(UserError, match=message):
            export_engine(checkpoint, tmp_path / "m.engine", options=options)
    with pytest.raises(UserError, match="use .engine"):
        export_engine(checkpoint, tmp_path / "m.onnx", options=RTX)
    assert not list(tmp_path.iterdir())


@pytest.mark.skipif(
    importlib.util.find_spec("tensorrt") is not None, reason="the full TensorRT is installed"
)
def test_a_builder_that_is_not_installed(checkpoint: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"pip install 'hmc-fast\[tensorrt\]'"):
        export_engine(checkpoint, tmp_path / "m.engine", options=EngineOptions("tensorrt"))
    assert Builder("auto").flavour.name == "tensorrt-rtx"


def test_progress_only_grows_and_ends_at_100(half_graph: OnnxExport) -> None:
    gains: list[int] = []
    phases: set[str] = set()

    def report(what: str, done: int, total: int) -> None:
        assert total == 100
        gains.append(done)
        phases.add(what)

    request = BuildRequest(half_graph.sidecar.profile, ("sm_89",), None, False, False)
    Builder("tensorrt-rtx").build(half_graph.engine.content, request, report)
    assert min(gains) >= 0
    assert sum(gains) == 100
    assert sum(gain > 0 for gain in gains) >= 5
    assert len(phases) >= 3


def test_nested_phases_share_their_parents_step() -> None:
    percents: list[int] = []
    progress = BuildProgress(lambda what, done, total: percents.append(done))
    progress.start("build", None, 2)
    progress.start("tactics", "build", 4)
    assert progress.step("tactics", 0)
    assert sum(percents) == 12
    assert progress.step("tactics", 3)
    assert sum(percents) == 50
    progress.finish("tactics")
    progress.step("build", 0)
    assert sum(percents) == 50
    progress.cancelled = True
    assert not progress.step("build", 1)
    progress.finish("build")
    assert sum(percents) == 100


def test_ctrl_c_stops_the_builder(half_graph: OnnxExport, checkpoint: Path, tmp_path: Path) -> None:
    pressed = threading.Event()
    before = signal.getsignal(signal.SIGINT)

    def press(what: str, done: int, total: int) -> None:
        if not pressed.is_set():
            pressed.set()
            os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(KeyboardInterrupt):
        write_engine(half_graph, checkpoint, tmp_path / "m.engine", RTX, on_progress=press)
    assert not list(tmp_path.iterdir())
    assert signal.getsignal(signal.SIGINT) is before


@pytest.mark.systems
@pytest.mark.parametrize("number", [1, 2], ids=["the form is chosen", "the engine is built"])
def test_ctrl_c_in_the_command_leaves_nothing(
    number: int,
    checkpoint: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    builds: list[BuildProgress] = []

    def press(progress: BuildProgress, *phase: Any) -> None:
        if progress not in builds:
            builds.append(progress)
        if len(builds) == number:
            os.kill(os.getpid(), signal.SIGINT)
        original(progress, *phase)

    original = BuildProgress.start
    engine_form.cache_clear()
    monkeypatch.setattr(BuildProgress, "start", press)
    out = tmp_path / "m.engine"
    arguments = ["export", "tensorrt", str(checkpoint), "--out", str(out), "--target", "sm_89"]
    assert run([*arguments, "--flavour", "tensorrt-rtx", "--batch", "1,2,4"]) == 130
    assert len(builds) == number
    assert "interrupted; nothing half-written is left" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


ATTENTIONS = {"hmc_net": 5, "resnet50_hsa": 3, "resnet50_msca": 2}
"""HSA has one in each of three stages, MSCA one for each of its two sources."""
TARGETS = ("sm_86", "sm_89", "sm_120")
LARGEST_ACTIVATION_BYTES = 1.6e9


@pytest.mark.systems
@pytest.mark.parametrize(
    ("model", "target"), sampled(product(ATTENTIONS, TARGETS), [("hmc_net", "sm_89")])
)
def test_attention_is_fused_and_activations_fit(
    model: str, target: str, save_model: Callable[..., Path], tmp_path: Path
) -> None:
    path = save_model(create_model(model), tmp_path / "m.safetensors", 1024)
    graph = make_onnx(path, precision="fp16", profile=Profile(1, 8, 8), engine_form="equal-widths")
    log = build(graph, targets=(target,)).log
    assert log.fused_softmaxes == ATTENTIONS[model]
    assert 1e8 < log.activation_bytes <= LARGEST_ACTIVATION_BYTES
    assert log.weight_bytes > 4e7


@pytest.mark.systems
@pytest.mark.parametrize(
    ("model", "target"),
    sampled(
        product(("hmc_net_resnet18", "resnet18_hsa", "resnet18_msca"), TARGETS),
        [("hmc_net_resnet18", "sm_120")],
    ),
)
def test_attention_of_a_narrow_trunk_is_fused(
    model: str, target: str, save_model: Callable[..., Path], tmp_path: Path
) -> None:
    """The scores of the first stage alone would be 268 MB, which the log calls fused or not."""
    path = save_model(create_model(model), tmp_path / "m.safetensors", 512)
    graph = make_onnx(path, precision="fp16", profile=Profile(1, 8, 8), engine_form="equal-widths")
    assert graph.engine is not None
    log = build(graph, targets=(target,)).log
    assert log.fused_softmaxes == graph.engine.attentions
    assert log.activation_bytes <= 2.5e8


def test_the_sidecar_tells_what_the_builder_said(engine_file: Path) -> None:
    engine = read_sidecar(engine_file).engine
    assert engine is not None
    assert engine.attentions == engine.fused_attentions == 4  # both sources of MSCA in one
    assert engine.activation_bytes is not None
    assert engine.weight_bytes is not None
    assert 2**16 < engine.activation_bytes < 2**28
    assert engine.weight_bytes > 2**20
    first, second = describe_build(engine, Profile(1, 4, 64))
    assert first.startswith("activations 0.")
    assert second == "attention: 4 of 4 run as one fused kernel each (form equal-widths)"


def test_attention_that_the_builder_finds_no_pattern_in_is_told_not_to_be_fused(
    half_graph: OnnxExport, checkpoint: Path, tmp_path: Path
) -> None:
    assert half_graph.engine is not None
    unfused = replace(half_graph.engine, content=half_graph.content)
    write_engine(replace(half_graph, engine=unfused), checkpoint, tmp_path / "e", RTX)
    engine = read_sidecar(tmp_path / "e").engine
    assert engine is not None
    assert not_fused(engine) > 0


@pytest.mark.parametrize(
    ("precision", "candidates", "chosen"),
    [
        ("fp16", CANDIDATES, "equal-widths"),
        ("fp16", ("blocks", "equal-widths"), "blocks"),
        pytest.param("fp16", ("nodes", "blocks"), "nodes", marks=pytest.mark.systems),
        pytest.param("bf16", CANDIDATES, "equal-widths", marks=pytest.mark.systems),
        ("fp32", CANDIDATES, "blocks"),
        pytest.param("fp32", ("equal-widths", "nodes"), "equal-widths", marks=pytest.mark.systems),
    ],
)
def test_the_builders_own_log_decides_the_form(
    precision: str, candidates: tuple[str, ...], chosen: str
) -> None:
    """It calls attention in fp32 fused and stores its scores, and refuses it as a node."""
    assert engine_form("tensorrt-rtx", ("sm_89", "sm_120"), precision, candidates) == chosen


@pytest.mark.systems
@pytest.mark.exhaustive
def test_an_fp32_engine_stores_no_scores(save_model: Callable[..., Path], tmp_path: Path) -> None:
    """The first stage's scores alone would be 4.3 GB; in pairs of products they take 9 GB."""
    path = save_model(create_model("resnet18_hsa"), tmp_path / "m.safetensors", 1024)
    out = tmp_path / "m.engine"
    profile = Profile(1, 4, 4)
    sidecar = export_engine(path, out, precision="fp32", profile=profile, options=RTX)
    engine = sidecar.engine
    assert engine is not None
    assert (engine.attention, engine.attentions, engine.fused_attentions) == ("blocks", 3, 0)
    assert engine.activation_bytes is not None
    assert engine.activation_bytes < 2e9


def test_an_engine_that_does_not_fit_is_refused_with_what_would(
    half_graph: OnnxExport, checkpoint: Path, tmp_path: Path
) -> None:
    options = replace(RTX, gpu_memory_gib=0.05)
    with pytest.raises(
        UserError, match=r"at 64x64 and batch 64 .* GPU of 0.05 GiB .*--batch 1,8,\d+ would"
    ):
        write_engine(half_graph, checkpoint, tmp_path / "m.engine", options)
    assert not list(tmp_path.iterdir())
    write_engine(half_graph, checkpoint, tmp_path / "m.engine", replace(RTX, gpu_memory_gib=2))


def test_what_cannot_fit_is_refused_before_the_build(checkpoint: Path) -> None:
    many = Profile(1, 8, 10_000)
    with pytest.raises(UserError, match=r"at 64x64 and batch 10000 one layer .*--batch 1,8,\d+"):
        make_onnx(
            checkpoint, precision="fp16", profile=many, engine_form="equal-widths", gpu_memory_gib=1
        )


@pytest.mark.parametrize("memory", [math.nan, math.inf, 0.0])
def test_memory_that_is_no_number_is_refused(tmp_path: Path, memory: float) -> None:
    with pytest.raises(UserError, match="give the GPU's memory in GiB"):
        check_options(
            replace(RTX, gpu_memory_gib=memory), tmp_path / "m.safetensors", tmp_path / "m.engine"
        )


@pytest.mark.systems
@pytest.mark.exhaustive
@pytest.mark.parametrize(
    ("model", "size"), [("hmc_net_lesions", 512), ("vgg19", 224), ("vit_b_16", 224)]
)
def test_what_is_known_before_a_build_bounds_the_log_from_both_sides(
    model: str, size: int, save_model: Callable[..., Path], tmp_path: Path
) -> None:
    path = save_model(create_model(model), tmp_path / "m.safetensors", size)
    profile = Profile(1, 8, 8)
    log = build(make_onnx(path, precision="fp16", profile=profile, engine_form="equal-widths")).log
    assert log.activation_bytes <= PIXEL_BYTES[2] * size**2 * 8
    traced = trace_checkpoint(path, precision="fp16", profile=profile)
    fits = log.activation_bytes / USABLE_SHARE / GIB
    check_may_fit(traced.program, torch.float16, traced.preprocessing, profile, fits)


def test_the_default_profile_follows_from_memory() -> None:
    small, large = Preprocessing.square(224), Preprocessing.square(1024)
    assert fitting(small, torch.float16, 8) == Profile(1, 8, 64)
    assert fitting(large, torch.float16, 8) == Profile(1, 8, 16)
    assert fitting(large, torch.float32, 2) == Profile(1, 2, 2)
    assert fitting(Preprocessing(2048, 1024), torch.float32, 4) == Profile(1, 2, 2)
    with pytest.raises(UserError, match=r"one image of 1024x1024 needs about 0.31 GiB"):
        fitting(large, torch.float16, 0.3)


def test_the_log_is_read() -> None:
    lines = [
        "Found node_softmax to be part of self-attention pattern.",
        "Found node_matmul_1 to be part of self-attention pattern.",
        "Found node_softmax_1 to be part of self-attention pattern.",
        "Total Activation Memory: 1426063360 bytes",
        "Total Weights Memory: 71663104 bytes",
    ]
    for tells_fusion in (False, True):
        assert BuildLog.of(lines, tells_fusion=tells_fusion) == BuildLog(1426063360, 71663104, 2)
    silent = ["Total Weights Memory: 5 bytes"]
    assert BuildLog.of(silent, tells_fusion=False) == BuildLog(None, 5, None)
    assert BuildLog.of(silent, tells_fusion=True) == BuildLog(None, 5, 0)


PEAK_OF_EXPORT = """
import sys
from pathlib import Path
from hmc_fast.export import EngineOptions, export_engine
checkpoint, engine = map(Path, sys.argv[1:])
export_engine(checkpoint, engine, size=1024, options=EngineOptions("tensorrt-rtx", ("sm_89",)))
status = Path("/proc/self/status").read_text()
print(next(int(line.split()[1]) // 1024 for line in status.splitlines() if "VmHWM" in line))
"""


@pytest.mark.systems
@pytest.mark.exhaustive
def test_exporting_hmc_net_at_1024_stays_within_8_gib(
    save_model: Callable[..., Path], tmp_path: Path
) -> None:
    path = save_model(create_model("hmc_net"), tmp_path / "m.safetensors", 224)
    done = subprocess.run(
        [sys.executable, "-c", PEAK_OF_EXPORT, str(path), str(tmp_path / "m.engine")],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert 500 < int(done.stdout) < MEMORY_LIMIT_MIB
    assert read_sidecar(tmp_path / "m.engine").preprocessing.height == 1024
