"""Cross-validation: complete, repeatable, resumable after kill -9, never mixed."""

import csv
import gc
import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from filelock import FileLock
from samples import sampled

from hmc_fast import UserError, load_model
from hmc_fast.data import PROTOCOLS, Film, read_folds, read_mias
from hmc_fast.evaluation import auc_interval, read_predictions
from hmc_fast.study import (
    StudySummary,
    fold_checkpoints,
    plan_study,
    read_study,
    run_cross_validation,
    summarise_study,
)
from hmc_fast.study.run import describe_films
from hmc_fast.training import TrainingConfig
from hmc_fast.training.lightning import FilmClassifier

MODEL = "hmc_net_resnet18"
QUICK = TrainingConfig(size=32, epochs=1, batch_size=18, learning_rate=1e-3)


def command(data: Path, out: Path, epochs: int = 2) -> list[str]:
    arguments = ["cv", "--data", str(data), "--out", str(out), "--model", MODEL, "--folds", "2"]
    arguments += ["--size", "32", "--epochs", str(epochs), "--dropout", "0.1"]
    return [sys.executable, "-c", "from hmc_fast.cli.app import main; main()", *arguments]


def outcome(study: Path) -> tuple[list[str], list[object]]:
    """Every out-of-fold logit and every learning curve of a study."""
    oof = (study / MODEL / "out_of_fold.csv").read_text().splitlines()
    return oof, [(study / MODEL / f"fold{k}" / "history.csv").read_text() for k in (0, 1)]


@pytest.fixture(scope="module")
def finished(phantoms: list[Film], tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A study of two folds; copy it before changing it."""
    study = tmp_path_factory.mktemp("finished")
    run_cross_validation(["resnet18"], QUICK, phantoms, study, fold_count=2)
    return study


@pytest.fixture
def study(finished: Path, tmp_path: Path) -> Path:
    """The finished study's own copy for one test."""
    return shutil.copytree(finished, tmp_path / "study")


def test_a_finished_job_leaves_no_model_in_memory(
    phantoms: list[Film], config: TrainingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    alive: weakref.WeakSet[FilmClassifier] = weakref.WeakSet()
    most = 0

    def counted(module: FilmClassifier, *arguments: Any) -> None:
        nonlocal most
        initialise(module, *arguments)
        alive.add(module)
        most = max(most, len(alive))

    initialise = FilmClassifier.__init__
    monkeypatch.setattr(FilmClassifier, "__init__", counted)
    gc.disable()  # else a collection by chance would hide what the jobs leave
    try:
        run_cross_validation(["resnet18"], config, phantoms, tmp_path, fold_count=2)
    finally:
        gc.enable()
    assert (most, len(alive)) == (1, 0)


def test_a_study_is_complete(phantoms: list[Film], config: TrainingConfig, tmp_path: Path) -> None:
    seen: list[tuple[str, int, int]] = []
    (summary,) = run_cross_validation(
        ["resnet18"], config, phantoms, tmp_path, fold_count=3,
        on_progress=lambda *report: seen.append(report),
    )  # fmt: skip
    assert sum(done for _, done, _ in seen) <= seen[0][2]
    folds = read_folds(tmp_path / "folds.json")
    pooled = read_predictions(tmp_path / "resnet18" / "out_of_fold.csv")
    assert sorted(pooled.films) == sorted(film.film_id for film in phantoms)
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


def test_a_missing_or_doubled_prediction_fails(study: Path) -> None:
    path = study / "resnet18" / "fold0" / "predictions.csv"
    lines = path.read_text().splitlines()
    path.write_text("\n".join(lines[:-1]) + "\n")
    with pytest.raises(UserError, match="has no out-of-fold prediction of fold 0"):
        summarise_study(study, "resnet18")
    path.write_text("\n".join([*lines, lines[-1]]) + "\n")
    with pytest.raises(UserError, match="is predicted twice"):
        summarise_study(study, "resnet18")


SWAPPED = {"logit_rest": "logit_malignant", "logit_malignant": "logit_rest"}


def lines_changed(path: Path, change: Callable[[list[str]], list[str]]) -> None:
    path.write_text("\n".join(change(path.read_text().splitlines())) + "\n")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda lines: lines[:-1], "is missing, foreign"),
        (
            lambda lines: [",".join(SWAPPED.get(c, c) for c in lines[0].split(",")), *lines[1:]],
            "classes are not those",
        ),
        (lambda lines: [lines[0], lines[1].replace(",rest,", ",malignant,"), *lines[2:]], "label"),
        (lambda lines: [lines[0], lines[1].replace(",p0", ",p9"), *lines[2:]], "another patient"),
        (lambda lines: [lines[0], lines[1].replace(",0,", ",1,"), *lines[2:]], "fold"),
    ],
    ids=["a lost row", "swapped classes", "a flipped label", "another patient", "another fold"],
)
def test_a_report_takes_predictions_of_the_held_out_films_alone(
    study: Path, change: Callable[[list[str]], list[str]], message: str
) -> None:
    read_study(study)
    path = study / "resnet18" / "fold0" / "predictions.csv"
    lines_changed(path, change)
    with pytest.raises(UserError, match=message):
        read_study(study)


def test_logits_that_are_not_finite_are_refused(study: Path) -> None:
    path = study / "resnet18" / "fold0" / "predictions.csv"
    lines_changed(path, lambda lines: [lines[0], lines[1].rsplit(",", 4)[0] + ",nan,0,.5,.5"])
    with pytest.raises(UserError, match="logits of film mdb.* are not finite"):
        read_predictions(path)


def test_one_film_under_two_names_is_not_trained_and_tested_on(
    phantom_folder: Path, config: TrainingConfig, tmp_path: Path
) -> None:
    other = shutil.copytree(phantom_folder, tmp_path / "films")
    films = read_mias(other)
    folds = plan_study(["resnet18"], config, films, tmp_path / "study", fold_count=2).folds[0]
    first, second = (next(a.film for a in folds.assignments if a.fold == k) for k in (0, 1))
    shutil.copy(other / f"{first}.pgm", other / f"{second}.pgm")
    with pytest.raises(UserError, match=f"films {second} and {first} have the same pixels"):
        run_cross_validation(["resnet18"], config, films, tmp_path / "study", fold_count=2)


@pytest.mark.parametrize("state", [{}, [], {"hmc_fast_training": "another"}], ids=str)
def test_the_state_of_another_training_is_not_continued(
    phantoms: list[Film], config: TrainingConfig, study: Path, state: object
) -> None:
    job = study / "resnet18" / "fold0"
    (job / "result.json").unlink()
    torch.save(state, job / "resume.ckpt")
    with pytest.raises(UserError, match="is the state of another training; delete it"):
        run_cross_validation(["resnet18"], QUICK, phantoms, study, fold_count=2)


@pytest.mark.parametrize(
    "damage", ["", "[" * 100_000, "[]", "null", '{"config": 3}', '{"config": {}, "fold": Infinity}']
)
def test_a_damaged_job_is_one_line(
    phantoms: list[Film], config: TrainingConfig, study: Path, damage: str
) -> None:
    (study / "resnet18" / "fold0" / "job.json").write_text(damage)
    with pytest.raises(UserError, match=r"fold 1/2: .*job\.json: "):
        run_cross_validation(["resnet18"], config, phantoms, study, fold_count=2)


def test_a_state_that_a_kill_left_beside_the_result_goes(
    phantoms: list[Film], config: TrainingConfig, study: Path
) -> None:
    state = study / "resnet18" / "fold0" / "resume.ckpt"
    state.write_bytes(b"a hundred megabytes")
    run_cross_validation(["resnet18"], config, phantoms, study, fold_count=2)
    assert not state.exists()


@pytest.mark.parametrize(
    "name", ["folds.json", "folds.csv", "study.json", "summary.json", "resnet18/out_of_fold.csv"]
)
def test_a_study_overwrites_nothing_of_others(
    phantoms: list[Film], config: TrainingConfig, tmp_path: Path, name: str
) -> None:
    foreign = tmp_path / name
    foreign.parent.mkdir(exist_ok=True)
    foreign.write_text("mine")
    with pytest.raises(UserError, match=re.escape(str(foreign))):
        run_cross_validation(["resnet18"], config, phantoms, tmp_path, fold_count=2)
    assert foreign.read_text() == "mine"


def test_a_changed_configuration_does_not_mix_in(
    phantoms: list[Film], config: TrainingConfig, study: Path
) -> None:
    other = TrainingConfig(**{**config.to_json(), "learning_rate": 0.5})
    with pytest.raises(UserError, match=r"other settings .learning_rate 0\.001 there, 0\.5 now"):
        run_cross_validation(["resnet18"], other, phantoms, study, fold_count=2)
    with pytest.raises(UserError, match=r"folds 2 there, 3 now"):
        run_cross_validation(["resnet18"], config, phantoms, study, fold_count=3)
    with pytest.raises(UserError, match=r"protocol 'patient' there, 'image' now"):
        run_cross_validation(["resnet18"], config, phantoms, study, fold_count=2, protocol="image")
    with pytest.raises(UserError, match="other folds or films"):
        run_cross_validation(["resnet18"], config, phantoms[2:], study, fold_count=2)


def test_other_pixels_or_another_fold_do_not_mix_in(
    phantoms: list[Film], phantom_folder: Path, config: TrainingConfig, study: Path
) -> None:
    other = study.parent / "films"
    shutil.copytree(phantom_folder, other)
    shutil.copy(other / "mdb002.pgm", other / "mdb001.pgm")
    with pytest.raises(UserError, match="belongs to a training with other films"):
        run_cross_validation(["resnet18"], config, read_mias(other), study, fold_count=2)
    job = study / "resnet18" / "fold0"
    shutil.rmtree(study / "resnet18" / "fold1")
    job.rename(study / "resnet18" / "fold1")
    with pytest.raises(UserError, match="other fold and films"):
        run_cross_validation(["resnet18"], config, phantoms, study, fold_count=2)


def test_folds_of_another_task_are_refused(
    phantoms: list[Film], config: TrainingConfig, finished: Path, tmp_path: Path
) -> None:
    other = TrainingConfig(**{**config.to_json(), "task": "abnormal"})
    with pytest.raises(UserError, match="folds of task malignant, but abnormal is asked for"):
        run_cross_validation(
            ["resnet18"], other, phantoms, tmp_path, folds_file=finished / "folds.json"
        )


def test_a_job_in_work_elsewhere_is_refused_alone_and_waited_for_in_a_whole_study(
    phantoms: list[Film], config: TrainingConfig, tmp_path: Path
) -> None:
    def run(only_jobs: list[int] | None = None) -> list[StudySummary]:
        return run_cross_validation(
            ["resnet18"], config, phantoms, tmp_path, fold_count=2, only_jobs=only_jobs
        )

    first = tmp_path / "resnet18" / "fold0"
    first.mkdir(parents=True)
    elsewhere = FileLock(first / ".lock")
    with elsewhere:
        with pytest.raises(UserError, match="fold 1/2: another process is working on this job"):
            run([0])
        assert run([1]) == []
        assert (tmp_path / "resnet18" / "fold1" / "result.json").is_file()
        assert not (first / "result.json").exists()
    with pytest.raises(UserError, match="job 2: this study has 2 jobs, numbered 0 to 1"):
        run([2])
    (summary,) = run([0])
    assert len(summary.folds) == 2
    assert (tmp_path / "summary.json").is_file()


@pytest.mark.systems
def test_two_processes_divide_a_study_and_both_report_all_of_it(
    phantom_folder: Path, undisturbed: Path, tmp_path: Path
) -> None:
    processes = [
        subprocess.Popen(command(phantom_folder, tmp_path), stderr=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    said = [process.communicate(timeout=300)[1] for process in processes]
    assert [process.returncode for process in processes] == [0, 0], said
    assert outcome(tmp_path) == outcome(undisturbed)


def test_repeats_are_studies_of_the_following_seeds(
    phantoms: list[Film], config: TrainingConfig, tmp_path: Path
) -> None:
    (repeated,) = run_cross_validation(
        ["resnet18"], config, phantoms, tmp_path / "a", fold_count=2, repeats=2
    )
    alone = TrainingConfig(**{**config.to_json(), "seed": config.seed + 1})
    (second,) = run_cross_validation(["resnet18"], alone, phantoms, tmp_path / "b", fold_count=2)
    assert repeated.folds[2:] == second.folds
    tables = [tmp_path / "a" / "resnet18" / "repeat1", tmp_path / "b" / "resnet18"]
    first, again = (read_predictions(folder / "out_of_fold.csv") for folder in tables)
    assert first.logits.tolist() == again.logits.tolist()
    values = [auc_interval(p.probabilities, p.labels, p.patients).value for p in (
        read_predictions(tmp_path / "a" / "resnet18" / "out_of_fold.csv"), first
    )]  # fmt: skip
    assert repeated.pooled_auc.value == pytest.approx(sum(values) / 2)


def test_leaking_protocols_put_patients_and_films_on_both_sides(
    phantoms: list[Film], config: TrainingConfig, tmp_path: Path
) -> None:
    def sides(protocol: str, attribute: str, copies: int | None = None) -> int:
        plan = plan_study(
            ["resnet18"], config, phantoms, tmp_path,
            fold_count=3, protocol=protocol, copies=copies,
        )  # fmt: skip
        job = plan.jobs[0].training
        train, test = (
            {getattr(job.films[i], attribute) for i in index}
            for index in (job.train_index, job.test_index)
        )
        return len(train & test)

    assert [sides(p, "patient_id") > 0 for p in PROTOCOLS] == [False, True, True]
    assert [sides(p, "film_id") > 0 for p in PROTOCOLS] == [False, False, True]
    assert [sides(p, "sample_id") for p in PROTOCOLS] == [0, 0, 0]
    assert sides("patient", "patient_id", copies=4) == 0
    assert not list(tmp_path.iterdir())


def test_augment_first_trains_and_predicts_every_copy(
    phantoms: list[Film], config: TrainingConfig, tmp_path: Path
) -> None:
    quick = TrainingConfig(**{**config.to_json(), "epochs": 1})
    (summary,) = run_cross_validation(
        ["resnet18"], quick, phantoms, tmp_path, fold_count=2, protocol="augment-first", copies=3
    )
    assert summary.protocol == "augment-first"
    pooled = read_predictions(tmp_path / "resnet18" / "out_of_fold.csv")
    assert len(pooled.films) == 3 * len(phantoms)
    assert {"mdb001", "mdb001@120", "mdb001@240"} <= set(pooled.films)
    assert len(set(pooled.patients)) == 18


def test_a_film_that_vanishes_half_way_loses_nothing(
    phantom_folder: Path, config: TrainingConfig, tmp_path: Path
) -> None:
    folder, study = tmp_path / "films", tmp_path / "study"
    shutil.copytree(phantom_folder, folder)
    films = read_mias(folder)
    run_cross_validation(["resnet18"], config, films, study, fold_count=2, only_jobs=[0])
    finished = study / "resnet18" / "fold0" / "result.json"
    before = finished.read_bytes()
    (folder / "mdb005.pgm").rename(folder / "away")
    with pytest.raises(UserError, match=r"fold 1/2: .*mdb005\.pgm: no such file; 1 more job fail"):
        run_cross_validation(["resnet18"], config, films, study, fold_count=2)
    with pytest.raises(UserError, match="mdb005 has a row but no film"):
        read_mias(folder)
    (folder / "away").rename(folder / "mdb005.pgm")
    (summary,) = run_cross_validation(["resnet18"], config, read_mias(folder), study, fold_count=2)
    assert finished.read_bytes() == before
    assert len(summary.folds) == 2


def test_a_folder_whose_name_is_no_text_is_named_in_a_record(
    phantom_folder: Path, tmp_path: Path
) -> None:
    folder = tmp_path / os.fsdecode(b"film\xffs")
    shutil.copytree(phantom_folder, folder)
    assert describe_films(read_mias(folder))["name"] == "film\\udcffs"


def test_a_record_tells_of_a_subset(phantom_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "films"
    shutil.copytree(phantom_folder, folder)
    assert "missing" not in describe_films(read_mias(folder))
    (folder / "mdb005.pgm").unlink()
    assert describe_films(read_mias(folder, allow_missing=True))["missing"] == 1


def test_a_failed_job_does_not_stop_the_others(
    phantoms: list[Film], config: TrainingConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = FilmClassifier.training_step

    def breaks_in_fold_0(self: FilmClassifier, *batch: object) -> object:
        return right(self, *batch) * (float("nan") if self.fold == 0 else 1)  # type: ignore[arg-type]

    monkeypatch.setattr(FilmClassifier, "training_step", breaks_in_fold_0)
    with pytest.raises(UserError, match=r"resnet18 fold 1/3: .* became nan"):
        run_cross_validation(["resnet18"], config, phantoms, tmp_path, fold_count=3)
    folds = sorted(path.parent.name for path in tmp_path.rglob("result.json"))
    assert folds == ["fold1", "fold2"]
    monkeypatch.setattr(FilmClassifier, "training_step", right)
    (summary,) = run_cross_validation(["resnet18"], config, phantoms, tmp_path, fold_count=3)
    assert len(summary.folds) == 3


def test_a_fold_of_one_class_is_refused(
    phantoms: list[Film], config: TrainingConfig, tmp_path: Path
) -> None:
    plan = plan_study(["resnet18"], config, phantoms, tmp_path, fold_count=2)
    path = tmp_path / "folds.json"
    plan.folds[0].save(path)
    values = json.loads(path.read_text())
    for assignment in values["assignments"]:
        assignment["fold"] = assignment["label"]
    values["protocol"] = "image"
    path.write_text(json.dumps(values))
    with pytest.raises(UserError, match="fold 0 does not hold every class"):
        plan_study(["resnet18"], config, phantoms, tmp_path, folds_file=path)


def test_a_loss_that_is_not_finite_stops_with_advice(
    phantoms: list[Film], config: TrainingConfig, tmp_path: Path
) -> None:
    wild = TrainingConfig(**{**config.to_json(), "learning_rate": 1e30})
    with pytest.raises(UserError, match="became .* lower --learning-rate"):
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


@pytest.mark.systems
@pytest.mark.parametrize(
    "moment",
    sampled(("in the first epoch", "between epochs", "in the second fold"), ["in the second fold"]),
)
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


@pytest.mark.systems
def test_a_resume_file_cut_short_starts_the_fold_over(
    phantom_folder: Path, undisturbed: Path, tmp_path: Path
) -> None:
    cut = tmp_path / MODEL / "fold0" / "resume.ckpt"
    cut.parent.mkdir(parents=True)
    cut.write_bytes(b"PK\x03\x04 cut short")
    subprocess.run(command(phantom_folder, tmp_path), check=True, capture_output=True)
    assert outcome(tmp_path) == outcome(undisturbed)


@pytest.mark.systems
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


def test_summaries_are_plain_json(finished: Path) -> None:
    summary = summarise_study(finished, "resnet18")
    assert isinstance(summary, StudySummary)
    assert json.loads(json.dumps(summary.to_json()))["model"] == "resnet18"
