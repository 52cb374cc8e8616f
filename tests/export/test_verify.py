"""Verification passes what is right, fails what is wrong, and says what did not run."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from samples import sampled

from hmc_fast.checkpoint import load_model, save_checkpoint
from hmc_fast.cli.app import run
from hmc_fast.data import Film
from hmc_fast.data.patients import PatientKeys
from hmc_fast.evaluation import Predictions
from hmc_fast.export import (
    Bounds,
    EngineOptions,
    OnnxExport,
    export_onnx,
    read_sidecar,
    verify,
)
from hmc_fast.export.engine import write_engine
from hmc_fast.export.onnx_export import write_onnx
from hmc_fast.export.sidecar import FileIdentity, sidecar_path
from hmc_fast.export.verify import compare, near_ties


def predictions(logits: list[list[float]], labels: list[int]) -> Predictions:
    names = tuple(str(i) for i in range(len(labels)))
    classes = tuple(f"class{c}" for c in range(len(logits[0])))
    folds = (0,) * len(labels)
    return Predictions(
        names, names, folds, np.asarray(labels), np.asarray(logits, np.float64), classes
    )


LABELS = [0, 0, 1, 1]
TRUTH = predictions([[1.0, 0.0], [0.51, 0.5], [0.0, 1.0], [0.0, 2.0]], LABELS)
BOUNDS = Bounds(logit=0.02, auc=0.01)


def test_equal_predictions_are_ok() -> None:
    row = compare("x", TRUTH, TRUTH, BOUNDS)
    assert row.status == "ok"
    assert row.max_logit_difference == row.mean_logit_difference == row.flips == 0
    assert row.auc == 1
    assert row.auc_difference == 0


def test_a_flip_near_the_threshold_is_allowed() -> None:
    found = replace(TRUTH, logits=TRUTH.logits + np.array([[0, 0], [-0.01, 0.01], [0, 0], [0, 0]]))
    row = compare("x", TRUTH, found, BOUNDS)
    assert (row.status, row.flips, row.flips_beyond) == ("ok", 1, 0)
    assert row.max_logit_difference == pytest.approx(0.01)
    assert row.mean_logit_difference == pytest.approx(0.0025)


def test_a_flip_far_from_the_threshold_and_a_lost_order_are_not() -> None:
    found = predictions([[0.0, 3.0], [0.51, 0.5], [0.0, 1.0], [0.0, 2.0]], LABELS)
    row = compare("x", TRUTH, found, BOUNDS)
    assert (row.status, row.flips, row.flips_beyond) == ("exceeds", 1, 1)
    assert row.reason is not None
    assert "a logit differs by 3.00e+00, bound 2.00e-02" in row.reason
    assert "1 decisions flip farther" in row.reason
    assert "AUC differs by 0.5000, bound 0.0100" in row.reason


def test_auc_is_left_out_where_a_class_is_absent() -> None:
    truth = predictions([[1.0, 0.0], [0.0, 1.0]], [0, 0])
    row = compare("x", truth, truth, BOUNDS)
    assert (row.status, row.auc, row.auc_difference) == ("ok", None, None)


def test_near_ties_are_the_pairs_that_rounding_may_swap() -> None:
    truth = predictions([[0.0, 0.0], [0.0, 1.0], [0.0, 0.05], [0.0, 2.0]], LABELS)
    # Of the pairs (0, .05), (0, 2), (1, .05), (1, 2) only the first is nearer than 4 × 0.02.
    assert near_ties(truth, 0.02) == 0.25
    assert near_ties(truth, 0.01) == 0
    assert near_ties(truth, 10.0) == 0.25, "a coarse format gets no excuse"


@pytest.mark.parametrize("above", range(1, 21))
def test_a_pair_that_may_swap_is_allowed_to_the_last_bit(above: int) -> None:
    """One of 2 malignant films beside 22 others, ``above`` of which are well above both."""
    logits = [5.0] * above + [0.0] + [-5.0] * (21 - above) + [0.01, -2.0]
    labels = [0] * 22 + [1, 1]
    truth = predictions([[0.0, logit] for logit in logits], labels)
    logits[22] = -0.01
    swapped = predictions([[0.0, logit] for logit in logits], labels)
    row = compare("x", truth, swapped, BOUNDS)
    assert row.auc_difference == pytest.approx(1 / 44)
    assert (row.status, row.reason) == ("ok", None)


def test_three_classes() -> None:
    truth = predictions([[1.0, 0, 0], [0, 1.0, 0], [0, 0, 1.0], [0.5, 0, 0]], [0, 1, 2, 0])
    row = compare("x", truth, truth, BOUNDS)
    assert (row.status, row.auc, row.auc_difference) == ("ok", 1.0, 0.0)


@pytest.fixture
def artefact(onnx_file: Path, checkpoint: Path, tmp_path: Path) -> Path:
    """A copy of artefact and checkpoint in one folder."""
    model = shutil.copy(checkpoint, tmp_path / "model.safetensors")
    export = OnnxExport(onnx_file.read_bytes(), read_sidecar(onnx_file))
    write_onnx(export, model, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def test_a_right_artefact_passes_and_is_recorded(
    artefact: Path, phantom_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = ["verify", str(artefact), "--data", str(phantom_folder), "--films", "12"]
    assert run([*arguments, "--no-record"]) == 0
    assert "ONNX Runtime" in capsys.readouterr().out
    assert read_sidecar(artefact).verified is None
    assert run([*arguments, "--json", "--out", str(artefact.with_name("v.json"))]) == 0
    result = json.loads(capsys.readouterr().out)
    assert result == json.loads(artefact.with_name("v.json").read_text())
    assert result["passed"]
    assert result["artefact_ran"]
    assert result["films"] == 12
    reference, *runtimes = result["rows"]
    assert reference["auc"] is not None
    assert [row["implementation"] for row in runtimes] == ["ONNX Runtime", "OpenVINO"]
    for row in runtimes:
        assert 0 < row["max_logit_difference"] < 1e-4
    verified = read_sidecar(artefact).verified
    assert verified is not None
    assert verified["rows"] == result["rows"]


def spoil(artefact: Path, checkpoint: Path) -> None:
    """Move one weight of the classifier and make the sidecar fit: only films can tell."""
    graph = onnx.load_from_string(artefact.read_bytes())
    (weight,) = [t for t in graph.graph.initializer if t.name.endswith("fc.bias")]
    values = numpy_helper.to_array(weight).copy()
    values[1] += 0.01
    weight.CopyFrom(numpy_helper.from_array(values, weight.name))
    export = OnnxExport(graph.SerializeToString(), read_sidecar(artefact))
    write_onnx(export, checkpoint, artefact)


def test_a_wrong_artefact_fails(
    artefact: Path, phantom_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(artefact, artefact.with_name("model.safetensors"))
    arguments = ["verify", str(artefact), "--data", str(phantom_folder), "--films", "6"]
    assert run(arguments) == 1
    assert "a logit differs by 1.00e-02, bound 1.00e-03" in capsys.readouterr().out
    assert read_sidecar(artefact).verified is None
    assert run([*arguments, "--max-logit", "0.02"]) == 0


@pytest.mark.parametrize(
    ("change", "name"),
    [
        (lambda values: values["class_names"].reverse(), "class_names"),
        (lambda values: values["preprocessing"].update(face_left=True), "preprocessing"),
        (lambda values: values["preprocessing"].update(mean=[0.0, 0.0, 0.0]), "preprocessing"),
        (lambda values: values.update(task="abnormal"), "class_names"),
        (
            lambda values: values.update(task="abnormal", class_names=["normal", "abnormal"]),
            "task",
        ),
        (lambda values: values["model"].update(name="resnet18"), "model"),
    ],
)
def test_a_sidecar_that_tells_other_than_the_checkpoint_is_refused(
    artefact: Path,
    phantom_folder: Path,
    tmp_path: Path,
    fails: Callable[..., str],
    change: Callable[[dict[str, Any]], object],
    name: str,
) -> None:
    """It would make both sides of the comparison wrong in the same way."""
    path = sidecar_path(artefact)
    values = json.loads(path.read_text())
    change(values)
    path.write_text(json.dumps(values))
    message = f"its sidecar has another {name} than the checkpoint"
    if name == "class_names":
        message = "class_names: are not those of the task"
    assert message in fails("verify", artefact, "--data", phantom_folder)
    assert message in fails("export", "triton-server", artefact, "--out", tmp_path / "served")


def test_every_check_has_a_verdict(
    artefact: Path, phantom_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["verify", str(artefact), "--no-record", "--data"]
    assert run([*command, str(phantom_folder), "--films", "12"]) == 0
    shown = capsys.readouterr().out
    assert shown.count("PASS ONNX Runtime: ") == shown.count("PASS OpenVINO: ") == 3
    assert run([*command, str(phantom_folder), "--films", "12", "--max-logit", "0"]) == 1
    assert "FAIL ONNX Runtime: a logit differs by" in capsys.readouterr().out
    assert run([*command, str(phantom_folder), "--films", "1"]) == 0
    assert "VOID ONNX Runtime: AUC: the films are all of one class" in capsys.readouterr().out


def test_films_of_training_patients_are_named(artefact: Path, phantoms: list[Film]) -> None:
    assert verify(artefact, phantoms, max_films=12).films_of_training_patients == 0
    checkpoint = artefact.with_name("model.safetensors")
    model, metadata = load_model(checkpoint)
    keys = PatientKeys.of(phantoms[:4], [])
    save_checkpoint(checkpoint, model, replace(metadata, training_patients=keys))
    sidecar = replace(read_sidecar(artefact), checkpoint=FileIdentity.of(checkpoint))
    write_onnx(OnnxExport(artefact.read_bytes(), sidecar), checkpoint, artefact)
    assert verify(artefact, phantoms).films_of_training_patients == 4


def test_bad_input_is_one_line(
    artefact: Path, phantom_folder: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    command = ("verify", artefact, "--data", phantom_folder)
    checkpoint = artefact.with_name("model.safetensors")
    other = tmp_path / "other.safetensors"
    other.write_bytes(checkpoint.read_bytes()[:-4] + b"\1\2\3\4")
    assert "is not the file that the sidecar of model.onnx" in fails(
        *command, "--checkpoint", other
    )
    checkpoint.unlink()
    assert "name it with --checkpoint" in fails(*command)
    assert "no such file" in fails("verify", tmp_path / "x.onnx", "--data", phantom_folder)
    sidecar_path(artefact).unlink()
    assert "has no sidecar" in fails(*command)


@pytest.mark.systems
@pytest.mark.real_data
@pytest.mark.parametrize(
    ("precision", "bound"), sampled((("fp32", 1e-3), ("fp16", 2e-2)), [("fp16", 2e-2)])
)
def test_trained_on_real_films_exported_and_verified_on_40_others(
    trained_on_films: Path,
    real_data: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    precision: str,
    bound: float,
) -> None:
    path = tmp_path / "model.onnx"
    export_onnx(trained_on_films, path, precision=precision)
    films = str(real_data / "mias")
    assert run(["verify", str(path), "--data", films, "--films", "40", "--json"]) == 0
    result = json.loads(capsys.readouterr().out)
    row = result["rows"][1]
    assert result["films"] == 40
    assert row["max_logit_difference"] <= bound == result["bounds"]["logit"]
    assert row["flips_beyond"] == 0
    assert row["auc_difference"] <= row["auc_allowed"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_an_engine_that_should_run_but_breaks_is_no_pass(
    half_graph: OnnxExport,
    checkpoint: Path,
    phantoms: list[Film],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    engine = tmp_path / "model.engine"
    write_engine(half_graph, checkpoint, engine, EngineOptions("tensorrt-rtx", ("sm_89",)))
    without_gpu = verify(engine, phantoms, max_films=6)
    assert [row.status for row in without_gpu.rows] == ["ok", "ok", "ok", "not run"]
    assert without_gpu.passed
    assert not without_gpu.artefact_ran
    monkeypatch.setattr("hmc_fast.export.runtime._check_engine_fits", lambda *engine: None)
    broken = verify(engine, phantoms, max_films=6)
    assert [row.status for row in broken.rows] == ["ok", "ok", "ok", "failed"]
    assert broken.rows[3].reason
    assert not broken.passed
