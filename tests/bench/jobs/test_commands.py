"""``bench kernels``, ``model`` and ``targets`` as their users run them."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from hmc_fast.bench.measuring.traces import ncu_command
from hmc_fast.bench.record import read_record
from hmc_fast.cli.app import run


@pytest.fixture(autouse=True)
def _small_ceilings(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hmc_fast.bench.measuring.ceilings.MATMUL_SIDE", {"cpu": 128, "cuda": 1024})
    monkeypatch.setattr(
        "hmc_fast.bench.measuring.ceilings.COPY_BYTES", {"cpu": 2**20, "cuda": 2**24}
    )


def test_kernels_writes_record_reports_and_traces(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["bench", "kernels", "--case", "hsa_c4@32x1", "--backend", "triton"]
    arguments += ["--backend", "eager", "--precision", "fp32", "--seconds", "0.02", "--profile"]
    assert run([*arguments, "--out", str(tmp_path)]) == 0
    printed = capsys.readouterr()
    record = read_record(tmp_path / "record.jsonl")
    assert not record.problems
    assert {row.peer for row in record.measurements} == {"triton", "eager"}
    assert record.environment["command"]
    assert record.device["clocks_before"]
    assert record.device["clocks_after"]
    assert record.ceilings[0].matmul_tflops > 0
    assert record.resources
    for name in ("report.md", "report.html"):
        assert "hsa_c4@32x1" in (tmp_path / name).read_text()
    trace = json.loads((tmp_path / "trace-hsa_c4@32x1-fp32-eager.json").read_text())
    assert any("attention_forward" in event.get("name", "") for event in trace["traceEvents"])
    assert "ncu --set full" in printed.out
    assert "GPU" in printed.out


def test_kernels_prints_json(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = ["bench", "kernels", "--case", "hsa_c5@32x1", "--backend", "eager", "--pass"]
    arguments += ["forward", "--seconds", "0.02", "--json", "--out", str(tmp_path)]
    assert run(arguments) == 0
    (row,) = json.loads(capsys.readouterr().out)["measurements"]
    assert (row["case"], row["status"]) == ("hsa_c5@32x1", "ok")


def test_model_tells_the_share_of_attention(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["bench", "model", "--case", "hmc_net@32x1", "--case", "resnet50@32x1"]
    arguments += ["--implementation", "eager", "--seconds", "0.02", "--out", str(tmp_path)]
    assert run(arguments) == 0
    assert "free attention would make it" in " ".join(capsys.readouterr().out.split())
    assert "Whole models" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize("command", ["kernels", "model", "targets"])
def test_the_plan_is_printed_and_nothing_is_measured(
    command: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for preset in ("cpu", "gpu", "targets"):
        arguments = ["bench", command, "--list", "--preset", preset, "--out", str(tmp_path / "x")]
        assert run(arguments) == 0
        assert "minutes" in capsys.readouterr().out
        assert run([*arguments, "--json"]) == 0
        plan = json.loads(capsys.readouterr().out)
        assert plan["cases"]
    assert not (tmp_path / "x").exists()


def test_every_target_is_in_the_plan_of_targets(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["bench", "targets", "--list", "--json"]) == 0
    plan = json.loads(capsys.readouterr().out)
    cases = set(plan["cases"])
    assert {"hsa_c3@1024x8", "hsa_block_c3@1024x8"} <= cases
    assert {"hmc_net@1024x8/inference", "hmc_net@512x16/training"} <= cases
    assert {"resnet50@224x1/inference", "resnet50@512x16/training"} <= cases
    assert plan["minutes"] < 10


def test_wrong_input_is_one_line(fails: Callable[..., str], tmp_path: Path) -> None:
    assert "cases look like" in fails("bench", "kernels", "--case", "hsa")
    assert "unknown peer" in fails("bench", "kernels", "--backend", "cutlass")
    assert "unknown pass" in fails("bench", "kernels", "--pass", "sideways")
    assert "unknown precision" in fails("bench", "kernels", "--precision", "fp8")
    assert "unknown preset" in fails("bench", "model", "--preset", "tpu")
    assert "unknown model" in fails("bench", "model", "--case", "vit@224x1")
    blocked = tmp_path / "file"
    blocked.write_text("")
    case = ("bench", "kernels", "--case", "hsa_c5@32x1", "--backend", "eager")
    assert "cannot be used as a folder" in fails(*case, "--out", blocked / "x")


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_without_a_gpu_its_presets_are_only_listed(fails: Callable[..., str]) -> None:
    assert "need an NVIDIA GPU" in fails("bench", "targets")
    assert "need an NVIDIA GPU" in fails("bench", "kernels", "--preset", "gpu")


def test_the_ncu_command_names_case_kernels_and_leaves_clocks_alone() -> None:
    program = ["python", "-m", "hmc_fast"]
    words = ncu_command("hsa_c3@1024x8", "backward", "bf16", program, Path("out/report"))
    command = " ".join(words)
    assert "--clock-control none" in command
    assert "python -m hmc_fast bench" in command
    assert "_backward_kv_kernel" in command
    assert "bench kernels --case hsa_c3@1024x8 --peer triton" in command
