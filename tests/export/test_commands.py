"""The commands as their users run them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from full_disk import room_for

from hmc_fast import UserError, create_model
from hmc_fast.cli.app import run
from hmc_fast.export import EngineOptions, OnnxExport, read_sidecar
from hmc_fast.export.engine import write_engine

pytestmark = pytest.mark.systems  # real builders


@pytest.fixture(scope="module")
def small(save_model: Callable[..., Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model that exports quickly."""
    torch.manual_seed(0)
    folder = tmp_path_factory.mktemp("small")
    return save_model(create_model("resnet18"), folder / "model.safetensors")


@pytest.mark.systems
def test_from_checkpoint_to_verified_engine_and_server(
    small: Path, phantom_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    engine = tmp_path / "out" / "m.engine"
    arguments = ["export", "tensorrt", str(small), "--out", str(engine), "--target"]
    arguments += ["sm_86,sm_89", "--batch", "1,2,4", "--flavour", "tensorrt-rtx", "--json"]
    assert run(arguments) == 0
    printed = json.loads(capsys.readouterr().out)
    assert printed["engine"]["targets"] == ["sm_86", "sm_89"]
    assert printed["profile"] == {"minimum": 1, "optimum": 2, "maximum": 4}
    assert printed["precision"] == "fp16"
    verification = ["verify", str(engine), "--data", str(phantom_folder), "--films", "9"]
    assert run([*verification, "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    *runtimes, built = result["rows"]
    assert [row["status"] for row in runtimes] == ["ok"] * 3  # torch, ONNX Runtime, OpenVINO
    if not result["artefact_ran"]:
        assert built["status"] == "not run"
        assert built["reason"]
        assert run([*verification, "--require-engine"]) == 1
        assert "did NOT run here" in capsys.readouterr().out
    repository = tmp_path / "repository"
    served = ["export", "triton-server", str(engine.with_suffix(".onnx")), "--out"]
    assert run([*served, str(repository), "--name", "films"]) == 0
    assert (repository / "films" / "1" / "model.onnx").is_file()


def test_int8_is_calibrated_and_measured_on_films(
    small: Path, phantom_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "int8.onnx"
    arguments = ["export", "onnx", str(small), "--out", str(out), "--quantise", "int8"]
    arguments += ["--calibration", str(phantom_folder), "--calibration-films", "8"]
    assert run(arguments) == 0
    quantisation = read_sidecar(out).quantisation or {}
    measured = quantisation.pop("measured")
    assert quantisation == {"format": "int8", "calibration": "extremes", "films": 8}
    assert measured["films"] == 8
    shown = capsys.readouterr().out
    for runtime, cost in measured["runtimes"].items():
        moved = f"{cost['max_logit_difference']:.2f}"
        assert f"int8 on {runtime}: a logit moves by up to {moved} (bound 0.5)" in shown
    assert run(["verify", str(out), "--data", str(phantom_folder), "--films", "9"]) == 0


def test_a_server_repository_from_a_checkpoint(small: Path, tmp_path: Path) -> None:
    arguments = ["export", "triton-server", str(small), "--out", str(tmp_path / "r")]
    assert run([*arguments, "--batch", "1,2,4"]) == 0
    served = tmp_path / "r" / "resnet18" / "1" / "model.onnx"
    assert read_sidecar(served).profile.maximum == 4
    assert read_sidecar(served).attention is None


def test_bad_input_is_one_line_and_leaves_nothing(
    small: Path, phantom_folder: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    out = ("--out", tmp_path / "m.engine")
    engine = ("export", "tensorrt", small, *out)
    graph = ("export", "onnx", small, "--out", tmp_path / "m.onnx")
    for target in ("sm_90", "sm_1", "", "ada"):
        assert "unknown target" in fails(*engine, "--target", target)
    assert "unknown flavour" in fails(*engine, "--flavour", "onnx")
    for batch in ("8,1,64", "0,1,1", "one", "1,8"):
        assert "batch profile" in fails(*engine, "--batch", batch)
        assert "batch profile" in fails(*graph, "--batch", batch)
    assert "unknown precision" in fails(*graph, "--precision", "int8")
    assert "multiples of 32" in fails(*graph, "--size", "100")
    assert "go together" in fails(*graph, "--quantise", "int8")
    films = ("--calibration", phantom_folder)
    assert "go together" in fails(*graph, *films)
    assert "unknown format" in fails(*graph, *films, "--quantise", "int4")
    assert "cannot be quantised" in fails(
        *engine, *films, "--quantise", "int8", "--precision", "fp16"
    )
    assert "no such file" in fails("export", "onnx", tmp_path / "no.safetensors")
    film = phantom_folder / "mdb001.pgm"
    assert "is not a complete safetensors file" in fails("export", "onnx", film, *out)
    cut = tmp_path / "cut.safetensors"
    cut.write_bytes(small.read_bytes()[:5000])
    assert "is not a complete safetensors file" in fails("export", "onnx", cut)
    cut.unlink()
    assert not list(tmp_path.iterdir())
    assert "no such file" in fails("export", "triton-server", tmp_path / "x.onnx", *out)
    assert "cannot be used as a folder" in fails("export", "onnx", small, "--out", film / "m.onnx")


def test_nothing_of_others_is_overwritten(
    small: Path, phantom_folder: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    checkpoint = tmp_path / "model.safetensors"
    content = small.read_bytes()
    checkpoint.write_bytes(content)
    (tmp_path / "link.onnx").symlink_to(checkpoint)
    (tmp_path / "same.onnx").hardlink_to(checkpoint)
    onnx = ("export", "onnx", checkpoint, "--out")
    for out in (checkpoint, tmp_path / "link.onnx", tmp_path / "same.onnx"):
        assert "is, or belongs to, the input" in fails(*onnx, out)
    engine = ("export", "tensorrt", checkpoint, "--out")
    assert "is, or belongs to, the input" in fails(*engine, tmp_path / "same.engine")
    assert "is, or belongs to, the input" in fails(*engine, checkpoint)
    foreign = tmp_path / "foreign.onnx"
    foreign.write_text("notes")
    assert "is no export of ours" in fails(*onnx, foreign)
    assert foreign.read_text() == "notes"
    assert checkpoint.read_bytes() == content
    evaluation = ("evaluate", "--checkpoint", checkpoint, "--data", phantom_folder, "--out")
    for out in (checkpoint, phantom_folder / "Info.txt", phantom_folder / "mdb001.pgm"):
        assert "is, or belongs to, the input" in fails(*evaluation, out)


@pytest.mark.systems
def test_a_full_disk_leaves_nothing(small: Path, tmp_path: Path, fails: Callable[..., str]) -> None:
    out = tmp_path / "m.onnx"
    with room_for(2**20):
        message = fails("export", "onnx", small, "--out", out)
    assert f"{out}: could not be written (File too large)" in message
    assert not list(tmp_path.iterdir())


def test_a_full_disk_keeps_the_old_engine(
    half_graph: OnnxExport, checkpoint: Path, tmp_path: Path
) -> None:
    out = tmp_path / "m.engine"
    options = EngineOptions("tensorrt-rtx", ("sm_89",))
    write_engine(half_graph, checkpoint, out, options)
    before = {path.name: path.read_bytes() for path in tmp_path.iterdir()}
    larger = EngineOptions("tensorrt-rtx", ("sm_80", "sm_86", "sm_89", "sm_120"))
    for room in (len(half_graph.content) - 1, len(before["m.engine"])):
        with room_for(room), pytest.raises(UserError, match="File too large"):
            write_engine(half_graph, checkpoint, out, larger)
        assert {path.name: path.read_bytes() for path in tmp_path.iterdir()} == before


@pytest.mark.parametrize("command", ["onnx", "tensorrt", "triton-server"])
@pytest.mark.parametrize("option", ["-h", "--help"])
def test_help_shows_an_example(
    command: str, option: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run(["export", command, option]) == 0
    printed = capsys.readouterr().out
    assert "Example" in printed
    assert f"hmc-fast export {command}" in printed
