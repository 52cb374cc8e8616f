"""Predictions whole and in pieces."""

import csv
import os
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from multiprocessing import active_children
from pathlib import Path
from typing import NoReturn

import numpy as np
import psutil
import pytest
from full_disk import room_for
from torch import Tensor

from hmc_fast import UserError
from hmc_fast.data import read_pixels
from hmc_fast.inference import PreparedModel
from hmc_fast.prediction import job as module
from hmc_fast.prediction import manifest, scores
from hmc_fast.prediction.job import ALL, PredictionJob, parts_folder, share_of
from hmc_fast.prediction.scores import Scorer
from hmc_fast.progress import no_progress

from .conftest import write_dicom

Jobs = Callable[..., PredictionJob]


@pytest.fixture(autouse=True)
def _small_chunks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(manifest, "CHUNK_FILMS", 2)


def rows(table: Path) -> list[dict[str, str]]:
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


def test_scores_are_those_of_the_model_film_by_film(
    pictures: Path, job: Jobs, scorer: Scorer
) -> None:
    found = job(pictures).run(no_progress)
    for line in found:
        margin = scorer.preprocessing(read_pixels(Path(line.file))).mean().item()
        assert line.probabilities[1] == pytest.approx(1 / (1 + np.exp(-margin)), abs=1e-6)
    assert [Path(line.file).name for line in found] == [f"mdb{n:03d}.pgm" for n in range(1, 11)]


def test_a_bad_film_is_a_row_with_its_reason_and_the_others_are_scored(
    pictures: Path, job: Jobs, tmp_path: Path
) -> None:
    good = {line.file: line.probabilities for line in job(pictures).run(no_progress)}
    (pictures / "mdb004.pgm").write_bytes(b"P5 40 30 255\nshort")
    (pictures / "mdb007.pgm").write_bytes(b"")
    (pictures / "mdb008.png").write_bytes((pictures / "mdb001.pgm").read_bytes())
    table = tmp_path / "t.csv"
    outcome = job(pictures).run_to_table(table, None, ALL, no_progress)
    assert [Path(f.file).name for f in outcome.failures] == [
        "mdb004.pgm",
        "mdb007.pgm",
        "mdb008.png",
    ]
    assert len(rows(table)) == outcome.films == 11
    for row in rows(table):
        if row["error"]:
            assert row["predicted"] == row["probability_rest"] == row["rule"] == ""
        else:
            expected = pytest.approx(good[row["file"]][1], abs=1e-6)
            assert float(row["probability_malignant"]) == expected
    reasons = {Path(row["file"]).name: row["error"] for row in rows(table)}
    assert reasons["mdb007.pgm"] == "the file is empty; copy it again"
    assert "same file as" in reasons["mdb008.png"]


def test_breasts_are_compared_within_whole_patients(
    archive: Path, job: Jobs, scorer: Scorer
) -> None:
    alone = {line.file: line for line in job(archive).run(no_progress)}
    pairs = job(archive, scorer=replace(scorer, compare=True)).run(no_progress)
    logit = {
        name: np.log(line.probabilities[1] / line.probabilities[0]) for name, line in alone.items()
    }
    mate = {"IM0": "IM2", "IM1": "IM3", "IM2": "IM0", "IM3": "IM1"}
    for line in pairs:
        path = Path(line.file)
        if path.name not in mate:
            assert (line.rule, line.probabilities) == ("v", alone[line.file].probabilities)
            continue
        assert line.rule == "2v - v_mate"
        margin = 2 * logit[line.file] - logit[str(path.with_name(mate[path.name]))]
        assert line.probabilities[1] == pytest.approx(1 / (1 + np.exp(-margin)), abs=1e-6)


def test_an_output_that_is_not_finite_is_the_films_error(
    pictures: Path, job: Jobs, model: PreparedModel
) -> None:
    model.model.gain.data.fill_(float("nan"))
    assert {line.error for line in job(pictures).run(no_progress)} == {
        "the output is not finite; use --precision fp32, or train again"
    }


def test_a_file_that_changed_after_the_manifest_has_no_score(
    pictures: Path, job: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = job(pictures)
    original = Scorer.score

    def change_then_score(self: Scorer, entries: object, on_films: object) -> object:
        (pictures / "mdb002.pgm").write_bytes((pictures / "mdb001.pgm").read_bytes())
        return original(self, entries, on_films)  # type: ignore[arg-type]

    monkeypatch.setattr(Scorer, "score", change_then_score)
    outcome = made.run_to_table(tmp_path / "t.csv", None, ALL, no_progress)
    assert [f.error for f in outcome.failures] == ["changed after the list of films was made"]


def test_processes_read_ahead_and_their_death_is_one_line(
    pictures: Path, job: Jobs, scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    ahead = job(pictures, scorer=replace(scorer, workers=2))
    assert ahead.run(no_progress) == job(pictures).run(no_progress)
    monkeypatch.setattr(
        scores, "film_image", lambda *film, **options: os.kill(os.getpid(), signal.SIGKILL)
    )
    with pytest.raises(UserError, match="a process that reads films died"):
        ahead.run(no_progress)


def test_a_reader_that_dies_while_a_model_works_is_one_line(
    pictures: Path, job: Jobs, scorer: Scorer, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The loader's signal comes between any two lines of ours, or of a model's."""
    before = set(active_children())

    def kill_a_reader_and_wait(images: Tensor) -> NoReturn:
        (set(active_children()) - before).pop().kill()
        time.sleep(60)
        raise AssertionError("no signal came")

    ahead = job(pictures, scorer=replace(scorer, workers=2))
    monkeypatch.setattr(Scorer, "_logits", lambda self, images: kill_a_reader_and_wait(images))
    with pytest.raises(UserError, match="a process that reads films died"):
        ahead.run(no_progress)


@pytest.mark.systems
@pytest.mark.exhaustive
def test_memory_does_not_grow_with_the_archive_and_resuming_is_quick(
    job: Jobs, tmp_path: Path
) -> None:
    for number in range(2000):
        write_dicom(tmp_path / "in" / f"{number}.dcm", number, PatientID=f"P{number // 4}")
    mib: list[float] = []

    def watch(label: str, done: int, total: int) -> None:
        if label == "predicting":
            mib.append(psutil.Process().memory_info().rss / 2**20)

    archive = job(tmp_path / "in")
    outcome = archive.run_to_table(tmp_path / "t.csv", None, ALL, watch)
    assert (outcome.films, outcome.failures) == (2000, ())
    assert mib[-1] - mib[len(mib) // 4] < 32
    start = time.perf_counter()
    assert archive.run_to_table(tmp_path / "t.csv", None, ALL, no_progress).scored_now == 0
    assert time.perf_counter() - start < 10


@pytest.mark.parametrize("level", ["film", "breast", "patient"])
def test_a_job_stopped_after_any_part_ends_as_one_that_was_not(
    pictures: Path, job: Jobs, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, level: str
) -> None:
    whole = tmp_path / "whole.csv"
    job(pictures, level=level).run_to_table(whole, 0.4, ALL, no_progress)
    original = module.write_part
    for stop in range(5):
        written = 0

        def write_or_stop(*arguments: object, stop: int = stop) -> None:
            nonlocal written
            if written == stop:
                raise KeyboardInterrupt
            original(*arguments)  # type: ignore[arg-type]
            written += 1

        table = tmp_path / f"stopped{stop}.csv"
        monkeypatch.setattr(module, "write_part", write_or_stop)
        with pytest.raises(KeyboardInterrupt):
            job(pictures, level=level).run_to_table(table, 0.4, ALL, no_progress)
        assert not table.exists()
        monkeypatch.setattr(module, "write_part", original)
        outcome = job(pictures, level=level).run_to_table(table, 0.4, ALL, no_progress)
        assert outcome.scored_now == 10 - 2 * stop
        assert table.read_bytes() == whole.read_bytes()


def test_shares_come_together_with_the_last(pictures: Path, job: Jobs, tmp_path: Path) -> None:
    whole, table = tmp_path / "whole.csv", tmp_path / "shared.csv"
    job(pictures).run_to_table(whole, None, ALL, no_progress)
    for share, missing in (((2, 3), 3), ((3, 3), 2)):
        outcome = job(pictures).run_to_table(table, None, share, no_progress)
        assert outcome.chunks_missing == missing
        assert not table.exists()
    assert job(pictures).run_to_table(table, None, (1, 3), no_progress).chunks_missing == 0
    assert table.read_bytes() == whole.read_bytes()
    again = job(pictures).run_to_table(table, None, (2, 3), no_progress)
    assert (again.scored_now, again.films_per_second) == (0, None)
    assert share_of("3/8") == (3, 8)
    for wrong in ("0/8", "9/8", "3", "a/b", "3/", "-1/2", "1/2/3"):
        with pytest.raises(UserError, match="needs N/M"):
            share_of(wrong)


def test_doubles_and_damaged_parts_are_refused(pictures: Path, job: Jobs, tmp_path: Path) -> None:
    table = tmp_path / "t.csv"
    made = job(pictures)
    made.run_to_table(table, None, ALL, no_progress)
    part, other = sorted(parts_folder(table).glob("part-*.csv"))[:2]
    kept = part.read_text()
    for damage in (other.read_text(), kept[:-40], "", kept.replace("malignant", "benign", 1)):
        part.write_text(damage)
        with pytest.raises(UserError, match=f"{part.name}: is damaged"):
            made.run_to_table(table, None, ALL, no_progress)
    part.write_text(kept)
    seen: set[tuple[str, str]] = set()
    chunks = manifest.make_manifest(made.sources, made.scoring).chunks
    ((_, first),) = made._scores(chunks[:1], no_progress, 2)
    module._refuse_doubles(first, seen)
    with pytest.raises(UserError, match="has two scores"):
        module._refuse_doubles(first, seen)


@pytest.mark.parametrize("size", [100, 300, 1500])
def test_a_full_disk_is_one_line_and_the_job_continues(
    pictures: Path, job: Jobs, tmp_path: Path, size: int
) -> None:
    """There is no room for a manifest, a part, the table."""
    whole, table = tmp_path / "whole.csv", tmp_path / "t.csv"
    job(pictures).run_to_table(whole, None, ALL, no_progress)
    if size > 100:
        manifest.frozen_manifest(parts_folder(table), job(pictures).sources, job(pictures).scoring)
    with room_for(size), pytest.raises(UserError, match="could not be written"):
        job(pictures).run_to_table(table, None, ALL, no_progress)
    assert not table.exists()
    assert not list(tmp_path.rglob("*.tmp"))
    job(pictures).run_to_table(table, None, ALL, no_progress)
    assert table.read_bytes() == whole.read_bytes()
    with room_for(size), pytest.raises(UserError, match="could not be written"):
        job(pictures).run_to_table(table, None, ALL, no_progress)
    assert table.read_bytes() == whole.read_bytes()
