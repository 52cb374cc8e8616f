"""Kernels compiled ahead of time, and the manifest that says how to launch them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hmc_fast import UserError, create_model
from hmc_fast.cli.app import run
from hmc_fast.export.aot import (
    AttentionCall,
    Manifest,
    attention_calls,
    read_manifest,
    write_kernels,
)
from hmc_fast.export.driver import check_kernels
from hmc_fast.export.onnx_export import trace_checkpoint
from hmc_fast.kernels.building.aot import parameter_bytes
from hmc_fast.kernels.fused.tiles import SHARED_MEMORY_KIB
from hmc_fast.kernels.problem import AttentionProblem

CALLS = ["hsa.C3", "hsa.C4", "hsa.C5", "msca"]


@pytest.fixture(scope="module")
def folder(checkpoint: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The kernels of a small HMC-Net at fp16 for two architectures."""
    out = tmp_path_factory.mktemp("kernels") / "kernels"
    calls = attention_calls(trace_checkpoint(checkpoint, precision="fp16").program)
    write_kernels(calls, ["sm_86", "sm_90"], checkpoint, "fp16", out)
    return out


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """A folder that a test may damage."""
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    return tmp_path


@pytest.fixture
def manifest(folder: Path) -> Manifest:
    return read_manifest(folder)


def test_the_manifest_lists_every_call_and_architecture(manifest: Manifest) -> None:
    pairs = [(kernel.architecture, kernel.call) for kernel in manifest.kernels]
    assert pairs == [(target, call) for target in ("sm_86", "sm_90") for call in CALLS]
    assert manifest.precision == "fp16"
    assert manifest.versions["triton"]


def test_the_cubins_take_the_arguments_of_the_manifest(folder: Path, manifest: Manifest) -> None:
    """By the cubin's own metadata; pointers are 8 bytes, integers 4."""
    for kernel in manifest.kernels:
        kinds = [argument.kind for argument in kernel.arguments]
        assert kinds == sorted(kinds, key=["input", "int32", "output"].index)
        sizes = [4 if kind == "int32" else 8 for kind in kinds]
        cubin = (folder / kernel.file.name).read_bytes()
        assert parameter_bytes(cubin) == sizes
        assert kernel.entry.encode() in cubin
        assert kernel.shared_bytes <= SHARED_MEMORY_KIB[kernel.architecture] * 1024
        assert kernel.threads % 32 == 0
        queries = kernel.arguments[0].shape
        assert queries is not None
        assert kernel.grid_per_image[0] % int(queries[2]) == 0  # a program has one head


def test_damaged_folders_are_refused(copy: Path) -> None:
    cubin = next(copy.glob("*.sm_90.cubin"))
    content = cubin.read_bytes()
    cubin.write_bytes(content[:-100])
    with pytest.raises(UserError, match=cubin.name):
        read_manifest(copy)
    cubin.unlink()
    with pytest.raises(UserError, match="is missing; export the kernels again"):
        read_manifest(copy)
    cubin.write_bytes(content)
    path = copy / "manifest.json"
    text = path.read_text()
    for broken, message in (
        (text[: len(text) // 2], "manifest.json"),
        ("[1]", "manifest.json"),
        ("{}", "another format"),
        (text.replace('"format": 1', '"format": 99'), "another format"),
        (text.replace(cubin.name, "../" + cubin.name), "is missing"),
        (text.replace('"threads"', '"thread"'), "kernels.0"),
        (text.replace('"scale": 0.125', '"scale": "0.125"'), "kernels.0.scale"),
    ):
        path.write_text(broken)
        with pytest.raises(UserError, match=message):
            read_manifest(copy)


@pytest.mark.systems
def test_the_command(
    checkpoint: Path,
    save_model: Callable[..., Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    fails: Callable[..., str],
) -> None:
    out = tmp_path / "kernels"
    arguments = ["export", "kernels", str(checkpoint), "--out", str(out), "--target", "sm_89"]
    assert run([*arguments, "--precision", "bf16", "--json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    assert {kernel["architecture"] for kernel in printed["kernels"]} == {"sm_89"}
    assert {a["dtype"] for k in printed["kernels"] for a in k["arguments"]} == {"bfloat16", None}
    assert len(list(out.glob("*.cubin"))) == 4
    (out / "manifest.json").write_text("{}")  # an earlier export is replaced, whatever its state
    assert run([*arguments, "--target", "sm_90,sm_90"]) == 0
    assert {path.name for path in out.iterdir()} == {
        "manifest.json",
        *(f"{call}.sm_90.cubin" for call in CALLS),
    }
    (out / "notes.txt").write_text("mine")
    assert "holds other files" in fails(*arguments)
    assert (out / "notes.txt").read_text() == "mine"
    wrong = ["export", "kernels", checkpoint, "--out", tmp_path / "none", "--target"]
    assert "unknown target 'sm_70'" in fails(*wrong, "sm_70")
    assert "unknown target 'sm_9'" in fails(*wrong, "sm_9")
    plain = save_model(create_model("resnet18"), tmp_path / "plain.safetensors")
    line = fails("export", "kernels", plain, "--out", tmp_path / "none")
    assert "has no attention kernels" in line
    assert not (tmp_path / "none").exists()
    if not torch.cuda.is_available():
        assert "needs an NVIDIA GPU" in fails(*wrong, "sm_89", "--check")


def test_an_earlier_export_survives_a_failing_one(
    copy: Path, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replace = Path.replace

    def fail_for_the_new_one(path: Path, target: Path) -> Path:
        if path.name == "new":
            raise OSError(28, "No space left on device")
        return replace(path, target)

    before = {path.name: path.read_bytes() for path in copy.iterdir()}
    calls = attention_calls(trace_checkpoint(checkpoint, precision="fp16").program)
    monkeypatch.setattr(Path, "replace", fail_for_the_new_one)
    with pytest.raises(UserError, match="could not be written"):
        write_kernels(calls[:1], ["sm_90"], checkpoint, "fp16", copy)
    assert {path.name: path.read_bytes() for path in copy.iterdir()} == before
    assert [path.name for path in copy.parent.iterdir() if copy.name in path.name] == [copy.name]


def test_a_call_without_a_kernel_is_one_line(checkpoint: Path, tmp_path: Path) -> None:
    wide = AttentionProblem(1, 49, 1, (49,), (256,), 512, torch.float16, name="wide")
    many = AttentionProblem(1, 49, 1, (49,) * 3, (64,) * 3, 64, torch.float16, name="many")
    for problem, message in ((wide, "wide for sm_90: has no kernel"), (many, "3 sources")):
        calls = [AttentionCall(problem.name, problem, 0.125)]
        with pytest.raises(UserError, match=message):
            write_kernels(calls, ["sm_90"], checkpoint, "fp16", tmp_path / "out")
    assert not list(tmp_path.iterdir())


@pytest.mark.gpu
def test_the_driver_launches_them_and_they_are_right(checkpoint: Path, tmp_path: Path) -> None:
    major, minor = torch.cuda.get_device_capability()
    for precision in ("fp16", "bf16", "fp32"):
        out = tmp_path / precision
        calls = attention_calls(trace_checkpoint(checkpoint, precision=precision).program)
        write_kernels(calls, [f"sm_{major}{minor}"], checkpoint, precision, out)
        uses = check_kernels(out, read_manifest(out))
        assert len(uses) == 5  # three self-attentions, and two sources of the cross-attention
        assert all(use.within for _, use in uses), uses
