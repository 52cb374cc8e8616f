"""Cross-validation: complete, repeatable, resumable after kill -9, never mixed."""

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from filelock import FileLock

from hmc_fast import UserError, load_model
from hmc_fast.data import Case, read_folds
from hmc_fast.evaluation import read_predictions
from hmc_fast.training import StudySummary, TrainingConfig, run_cross_validation, summarise_study
from hmc_fast.training.cv import fold_checkpoints

MODEL = "hmc_net_resnet18"


def command(data: Path, out: Path, epochs: int = 3) -> list[str]:
    arguments = ["cv", "--data", str(data), "--out", str(out), "--model", MODEL, "--folds", "2"]
    arguments += ["--size", "32", "--epochs", str(epochs), "--dropout", "0.1"]
    return [sys.executable, "-P", "-c", "from hmc_fast.cli.app import main; main()", *arguments]


def outcome(study: Path) -> tuple[list[str], list[object]]:
    """Every out-of-fold logit and every learning curve of a study."""
    oof = (study / MODEL / "out_of_fold.csv").read_text().splitlines()
    return oof, [(study / MODEL / f"fold{k}" / "history.csv").read_text() for k in (0, 1)]


def test_a_study_is_complete(phantoms: list[Case], config: TrainingConfig, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    (summary,) = run_cross_validation(
        ["resnet18"], config, phantoms, tmp_path, fold_count=3,
        on_progress=lambda *report: seen.append(report),
    )  # fmt: skip
    assert sum(done for _, done, _ in seen) <= seen[0][2]
    folds = read_folds(tmp_path / "folds.json")
    pooled = read_predictions(tmp_path / "resnet18" / "out_of_fold.csv")
    assert sorted(pooled.films) == sorted(case.film_id for case in phantoms)
    assert set(pooled.films) == {a.film for a in folds.assignments}
    for fold, path in enumerate(fold_checkpoints(tmp_path, "resnet18")):
        trained_on = set(load_model(path).metadata.training_films)
        held_out = {a.film for a in folds.assignments if a.fold == fold}
        assert trained_on.isdisjoint(held_out)
        assert len(trained_on) + len(held_out) == len(phantoms)
        with (path.parent / "history.csv").open() as file:
            assert len(list(csv.DictReader(file))) == config.epochs
        assert not (path.parent / "resume.ckpt").exists()
    written = json.loads((tmp_path / "summary.json").read_text())
    assert written["protocol"] == "patient"
    assert written["models"][0]["pooled_auc"]["value"] == summary.pooled_auc.value
    assert len(summary.folds) == 3


def test_a_missing_or_doubled_prediction_fails(
    phantoms: list[Case], config: TrainingConfig, tmp_path: Path
) -> None:
    run_cross_validation(["resnet18"], config, phantoms, tmp_path, fold_count=2)
    path = tmp_path / "resnet18" / "fold0" / "predictions.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(UserError, match="has no out-of-fold prediction of fold 0"):
        summarise_study(tmp_path, "resnet18")
    path.write_text("\n".join([*lines, lines[-1]]) + "\n")
    with pytest.raises(UserError, match="is predicted twice"):
        summarise_study(tmp_path, "resnet18")


def test_a_changed_configuration_does_not_mix_in(
    phantoms: list[Case], config: TrainingConfig, tmp_path: Path
) -> None:
    run_cross_validation(["resnet18"], config, phantoms, tmp_path, fold_count=2)
    other = TrainingConfig(**{**config.to_json(), "learning_rate": 0.5})
    with pytest.raises(UserError, match=r"other settings .learning_rate 0\.001 there, 0\.5 now"):
        run_cross_validation(["resnet18"], other, phantoms, tmp_path, fold_count=2)
    with pytest.raises(UserError, match="other folds or films"):
        run_cross_validation(["resnet18"], config, phantoms, tmp_path, fold_count=3)


def test_two_processes_do_not_share_a_study(
    phantoms: list[Case], config: TrainingConfig, tmp_path: Path
) -> None:
    with (
        FileLock(tmp_path / ".lock"),
        pytest.raises(UserError, match="another process is working on this study"),
    ):
        run_cross_validation(["resnet18"], config, phantoms, tmp_path, fold_count=2)


def test_a_loss_that_is_not_finite_stops_with_advice(
    phantoms: list[Case], config: TrainingConfig, tmp_path: Path
) -> None:
    wild = TrainingConfig(**{**config.to_json(), "learning_rate": 1e30})
    with pytest.raises(UserError, match="the loss became .* lower --learning-rate"):
        run_cross_validation(["resnet18"], wild, phantoms, tmp_path, fold_count=2)


@pytest.fixture(scope="module")
def undisturbed(phantom_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    study = tmp_path_factory.mktemp("undisturbed")
    subprocess.run(command(phantom_folder, study), check=True, capture_output=True)
    return study


def wait_for(path: Path, process: subprocess.Popen[bytes]) -> None:
    deadline = time.monotonic() + 240
    while not path.exists():
        assert process.poll() is None, "ended before it could be interrupted"
        assert time.monotonic() < deadline
        time.sleep(0.01)


@pytest.mark.parametrize("moment", ["in the first epoch", "between epochs", "in the second fold"])
def test_kill_9_and_again_ends_as_if_undisturbed(
    phantom_folder: Path, undisturbed: Path, tmp_path: Path, moment: str
) -> None:
    folder = tmp_path / MODEL
    trigger = {
        "in the first epoch": folder / "fold0",
        "between epochs": folder / "fold0" / "resume.ckpt",
        "in the second fold": folder / "fold1" / "resume.ckpt",
    }[moment]
    process = subprocess.Popen(command(phantom_folder, tmp_path), stderr=subprocess.DEVNULL)
    wait_for(trigger, process)
    process.kill()
    process.wait()
    finished = folder / "fold0" / "result.json"
    before = finished.stat().st_mtime_ns if moment == "in the second fold" else None
    assert finished.exists() == (before is not None)
    subprocess.run(command(phantom_folder, tmp_path), check=True, capture_output=True)
    assert outcome(tmp_path) == outcome(undisturbed)
    if before is not None:
        assert finished.stat().st_mtime_ns == before


def test_a_resume_file_cut_short_starts_the_fold_over(
    phantom_folder: Path, undisturbed: Path, tmp_path: Path
) -> None:
    cut = tmp_path / MODEL / "fold0" / "resume.ckpt"
    cut.parent.mkdir(parents=True)
    cut.write_bytes(b"PK\x03\x04 cut short")
    subprocess.run(command(phantom_folder, tmp_path), check=True, capture_output=True)
    assert outcome(tmp_path) == outcome(undisturbed)


def test_ctrl_c_says_one_line_and_leaves_130(phantom_folder: Path, tmp_path: Path) -> None:
    process = subprocess.Popen(
        command(phantom_folder, tmp_path, epochs=200), stderr=subprocess.PIPE
    )
    wait_for(tmp_path / MODEL / "fold0" / "resume.ckpt", process)
    os.kill(process.pid, signal.SIGINT)
    _, stderr = process.communicate(timeout=120)
    assert process.returncode == 130
    assert b"Traceback" not in stderr
    assert stderr.decode().strip().splitlines()[-1].startswith("hmc-fast: interrupted")
    assert not list(tmp_path.rglob("*.tmp"))


FILE_SIZE_LIMIT = """
import resource, sys
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)),) * 2)
from hmc_fast.cli.app import main
main()
"""


@pytest.mark.parametrize("limit", [100, 5_000, 20_000_000])
def test_a_full_disk_is_one_line_and_nothing_half_written(
    phantom_folder: Path, tmp_path: Path, limit: int
) -> None:
    arguments = command(phantom_folder, tmp_path)[4:]
    done = subprocess.run(
        [sys.executable, "-P", "-c", FILE_SIZE_LIMIT, str(limit), *arguments],
        capture_output=True,
        text=True,
    )
    assert done.returncode == 1
    assert "Traceback" not in done.stderr
    assert done.stderr.strip().splitlines()[-1].startswith("hmc-fast: ")
    assert not list(tmp_path.rglob("*.tmp"))
    for path in tmp_path.rglob("*.json"):
        json.loads(path.read_text())


def test_summaries_are_plain_json(
    phantoms: list[Case], config: TrainingConfig, tmp_path: Path
) -> None:
    (summary,) = run_cross_validation(["resnet18"], config, phantoms, tmp_path, fold_count=2)
    assert isinstance(summary, StudySummary)
    assert json.loads(json.dumps(summary.to_json()))["model"] == "resnet18"
