"""``predict`` as its users run it."""

import csv
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import replace
from pathlib import Path

import psutil
import pytest
import torch
from PIL import Image

from hmc_fast import load_model
from hmc_fast.checkpoint import OperatingPoint, save_checkpoint
from hmc_fast.cli.app import run
from hmc_fast.data import write_phantoms

SMALL_CHUNKS = """
from hmc_fast.cli.app import main
from hmc_fast.prediction import manifest
manifest.CHUNK_FILMS = 2
main()
"""
SLOW_PARTS = """
import time
from hmc_fast.prediction import job
write_part = job.write_part
job.write_part = lambda *a: (time.sleep(0.05), write_part(*a))
"""
"""In front of the other: a kill never comes too late, however fast the machine."""
KILLS = 10
PATIENTS_A_KILL = 10
"""So many that a killed command has films left; a patient's two are a chunk."""


@pytest.fixture
def films(phantom_folder: Path, tmp_path: Path) -> Path:
    """Eight good films and a bad one."""
    folder = tmp_path / "films"
    folder.mkdir()
    for number in range(1, 9):
        shutil.copy(phantom_folder / f"mdb{number:03d}.pgm", folder)
    (folder / "mdb009.pgm").write_text("no film")
    return folder


def rows(table: Path) -> list[dict[str, str]]:
    with table.open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_bad_film_is_named_at_the_end_and_all_others_are_scored(
    checkpoint: Path, films: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    table = tmp_path / "scores.csv"
    command = ("predict", films, "--checkpoint", checkpoint, "--out", table)
    assert fails(*command) == f"hmc-fast: 1 of 9 films have no score; {table} says why of each"
    assert [bool(row["predicted"]) for row in rows(table)] == [True] * 8 + [False]
    assert "header is damaged" in rows(table)[-1]["error"]
    record = json.loads((tmp_path / "scores.csv.parts" / "record.json").read_text())
    assert (record["films"], record["failed"], record["scored_now"]) == (9, 1, 9)
    assert record["films_per_second"] > 0
    fails(*command, "--level", "patient")  # from the same parts
    assert [row["side"] for row in rows(table)] == ["R+L"] * 4 + ["R"]
    assert "header is damaged" in fails(*command[:1], films / "mdb009.pgm", *command[2:4])


def test_a_film_of_too_many_pixels_is_a_row_that_names_the_option(
    checkpoint: Path, films: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    with Image.open(films / "mdb002.pgm") as film:
        pixels = film.width * film.height
        film.resize((2 * film.width, 2 * film.height)).save(films / "mdb009.pgm")
    command = ["predict", films, "--checkpoint", checkpoint, "--out"]
    lowered = [*command, tmp_path / "lowered.csv", "--max-pixels", pixels]
    assert "1 of 9 films have no score" in fails(*lowered)
    (row,) = (row for row in rows(tmp_path / "lowered.csv") if row["error"])
    assert Path(row["file"]).name == "mdb009.pgm"
    assert f"and {pixels} in all; --max-pixels or" in row["error"]
    assert "belongs to a prediction with other max_pixels" in fails(*lowered[:-1], 4 * pixels)
    raised = [*command, tmp_path / "raised.csv", "--max-pixels", 4 * pixels]
    assert run([str(word) for word in raised]) == 0


@pytest.mark.parametrize("name", ["a\rb.pgm", 'a\n"b,.pgm', "a\x1b[31m\u202e.pgm"])
def test_a_table_has_any_name_of_a_file(
    checkpoint: Path, films: Path, tmp_path: Path, name: str
) -> None:
    film = (films / "mdb001.pgm").rename(films / name)
    out = tmp_path / "scores.csv"
    assert run(["predict", str(film), "--checkpoint", str(checkpoint), "--out", str(out)]) == 0
    (row,) = rows(out)
    assert row["file"] == str(film)
    assert row["predicted"]


def test_json_has_good_and_failed_films(
    checkpoint: Path, films: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    named = [str(films / "mdb00[19].pgm"), "--checkpoint", str(checkpoint), "--json"]
    assert run(["predict", *named, "--level", "breast", "--device", "cpu"]) == 1
    result = json.loads(capsys.readouterr().out)
    (film,), (failed,) = result["films"], result["failed"]
    assert film["patient"]
    assert film["side"] == "R"
    assert failed["file"] == str(films / "mdb009.pgm")
    assert result["decision"] == {"threshold": None, "origin": "the likelier class"}


def test_names_that_are_no_text_are_scored_and_spelled_out(
    checkpoint: Path, films: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    odd = tmp_path / os.fsdecode(b"o\xffd\x1b[2J.pgm")
    shutil.copy(films / "mdb001.pgm", odd)
    shutil.copy(films / "mdb009.pgm", tmp_path / os.fsdecode(b"b\xffd.pgm"))
    predict = ["predict", str(tmp_path / "*.pgm"), "--checkpoint", str(checkpoint)]
    assert run(predict) == 1
    printed = capfd.readouterr()
    assert "o\\udcffd\\x1b[2J.pgm" in printed.out
    assert "b\\udcffd.pgm: is no " in printed.err
    assert "\x1b[2J" not in printed.out + printed.err
    table = tmp_path / "scores.csv"
    for _ in range(2):
        assert run([*predict, "--out", str(table)]) == 1
        assert f"1 of 2 films have no score; {table}" in capfd.readouterr().err
    with table.open(newline="", errors="surrogateescape", encoding="utf-8") as file:
        assert {row["file"] for row in csv.DictReader(file) if row["predicted"]} == {str(odd)}


def test_the_checkpoints_operating_point_decides_and_is_named(
    checkpoint: Path, films: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    model, metadata = load_model(checkpoint)
    film = ["predict", str(films / "mdb001.pgm")]
    assert run([*film, "--checkpoint", str(checkpoint), "--json"]) == 0
    (plain,) = json.loads(capsys.readouterr().out)["films"]
    p = plain["probabilities"]["malignant"]
    for threshold, expected in ((p - 1e-4, "malignant"), (p + 1e-4, "rest")):
        point = OperatingPoint(threshold, 0.9, 0.92, 0.6, 100)
        save_checkpoint(tmp_path / "m.safetensors", model, replace(metadata, operating_point=point))
        decided = [*film, "--checkpoint", str(tmp_path / "m.safetensors")]
        assert run([*decided, "--json"]) == 0
        result = json.loads(capsys.readouterr().out)
        assert result["films"][0]["predicted"] == expected
        assert result["decision"]["threshold"] == threshold
        assert run(decided) == 0
        assert f"malignant from {threshold:.4f} on (operating point" in capsys.readouterr().out
        assert run([*decided, "--json", "--threshold", "0"]) == 0
        assert json.loads(capsys.readouterr().out)["films"][0]["predicted"] == "malignant"


def test_what_cannot_be_done_is_said_before_a_model_is_loaded(
    films: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    predict = ("predict", films, "--checkpoint", tmp_path / "no.safetensors")
    assert "gone.pgm: no such file" in fails("predict", tmp_path / "gone.pgm", *predict[1:])
    assert "unknown level" in fails(*predict, "--level", "woman")
    assert "unknown device 'tpu'" in fails(*predict, "--device", "tpu")
    if not torch.cuda.is_available():
        assert "this machine has 0 GPUs" in fails(*predict, "--device", "cuda")
    assert "ends in .csv or .parquet" in fails(*predict, "--out", tmp_path / "scores.txt")
    assert "--chunk needs --out" in fails(*predict, "--chunk", "1/2")
    assert "needs N/M" in fails(*predict, "--out", tmp_path / "t.csv", "--chunk", "3/2")
    foreign = tmp_path / "foreign.csv"
    foreign.write_text("mine")
    assert "exists, and no prediction" in fails(*predict, "--out", foreign)
    table = tmp_path / "films.csv"
    table.write_text(f"path\n{films / 'mdb001.pgm'}\n")
    assert "which is not overwritten" in fails("predict", table, *predict[2:], "--out", table)
    assert foreign.read_text() == "mine"


def test_parquet_without_pyarrow_says_how_to_get_it(
    films: Path, tmp_path: Path, fails: Callable[..., str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    out = tmp_path / "scores.parquet"
    message = fails("predict", films, "--checkpoint", tmp_path / "none", "--out", out)
    assert "pip install 'hmc-fast[batch]'" in message


def test_parquet_holds_what_csv_does(checkpoint: Path, films: Path, tmp_path: Path) -> None:
    parquet = pytest.importorskip("pyarrow.parquet", reason="Parquet needs pyarrow")
    for suffix in ("csv", "parquet"):
        out = str(tmp_path / f"scores.{suffix}")
        assert run(["predict", str(films), "--checkpoint", str(checkpoint), "--out", out]) == 1
    table = parquet.read_table(tmp_path / "scores.parquet").to_pylist()
    kept = rows(tmp_path / "scores.csv")
    assert [{k: "" if v is None else str(v) for k, v in row.items()} for row in table] == kept


@pytest.mark.systems
def test_shares_that_run_at_once_make_one_table(
    checkpoint: Path, phantom_folder: Path, tmp_path: Path
) -> None:
    arguments = ["predict", str(phantom_folder), "--checkpoint", str(checkpoint), "--out"]
    whole, table = tmp_path / "whole.csv", tmp_path / "shared.csv"
    assert run([*arguments, str(whole)]) == 0  # in one chunk: batches differ, by chunks of 2
    command = [sys.executable, "-c", SMALL_CHUNKS, *arguments, str(table), "--chunk"]
    shares = [subprocess.Popen([*command, f"{n}/3"], stdout=subprocess.DEVNULL) for n in (1, 2, 3)]
    assert [share.wait() for share in shares] == [0, 0, 0]
    for ours, theirs in zip(rows(table), rows(whole), strict=True):
        assert ours["file"] == theirs["file"]
        expected = pytest.approx(float(theirs["probability_malignant"]), abs=1e-5)
        assert float(ours["probability_malignant"]) == expected


@pytest.mark.systems
@pytest.mark.parametrize("kills", [3, pytest.param(KILLS, marks=pytest.mark.exhaustive)])
def test_kill_9_at_random_moments_and_resume(checkpoint: Path, tmp_path: Path, kills: int) -> None:
    films = 2 * kills * PATIENTS_A_KILL
    write_phantoms(tmp_path / "films", patients=films // 2, size=64, seed=1)

    def command(out: Path) -> list[str]:
        arguments = ["predict", str(tmp_path / "films"), "--checkpoint", str(checkpoint)]
        return [sys.executable, "-c", SLOW_PARTS + SMALL_CHUNKS, *arguments, "--out", str(out)]

    whole, table = tmp_path / "whole.csv", tmp_path / "killed.csv"
    start = time.perf_counter()
    subprocess.run(command(whole), check=True, capture_output=True)
    seconds = time.perf_counter() - start
    first_part = min(p.stat().st_mtime for p in (tmp_path / "whole.csv.parts").glob("part-*"))
    working = whole.stat().st_mtime - first_part
    rng, parts = random.Random(0), tmp_path / "killed.csv.parts"
    for kill in range(kills):
        before = len(list(parts.glob("part-*")))
        process = subprocess.Popen(
            command(table), stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
            start_new_session=True,
        )  # fmt: skip
        # Shares of what the first run took are small: this one may run on a quieter machine.
        if kill % 3 == 0:  # while it starts, or the manifest is made
            time.sleep(rng.uniform(0.1, 0.5) * (seconds - working))
        else:  # after it has got further
            while len(list(parts.glob("part-*"))) == before and process.poll() is None:
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.2) * working / kills)
        assert process.poll() is None, "it had ended before it was killed"
        os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    subprocess.run(command(table), check=True, capture_output=True)
    assert table.read_bytes() == whole.read_bytes()
    assert len({row["file"] for row in rows(table)}) == len(rows(table)) == films


@pytest.mark.systems
@pytest.mark.exhaustive
def test_processes_that_read_ahead_are_killed(
    checkpoint: Path, phantom_folder: Path, tmp_path: Path
) -> None:
    """Each kill ends the command in one line, or comes after the process has read its last film."""
    arguments = ["predict", str(phantom_folder), "--checkpoint", str(checkpoint), "--workers", "2"]
    whole, table = tmp_path / "whole.csv", tmp_path / "killed.csv"
    command = [sys.executable, "-c", SMALL_CHUNKS, *arguments, "--out"]
    subprocess.run([*command, whole], check=True, capture_output=True)
    rng, killed, ended = random.Random(0), 0, 0
    while killed < KILLS:
        process = subprocess.Popen(
            [*command, table], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        readers_of(process)
        time.sleep(rng.uniform(0, 1.5))
        for reader in readers_of(process)[:1]:
            with suppress(psutil.NoSuchProcess):
                reader.kill()
                killed += 1
        _, said = process.communicate()
        if process.returncode:
            assert "a process that reads films died" in said
            assert "Traceback" not in said
            ended += 1
        else:
            assert table.read_bytes() == whole.read_bytes()
            shutil.rmtree(tmp_path / "killed.csv.parts")
            table.unlink()
    assert ended
    subprocess.run([*command, table], check=True, capture_output=True)
    assert table.read_bytes() == whole.read_bytes()


def readers_of(process: "subprocess.Popen[str]") -> list[psutil.Process]:
    """The processes that read ahead, as soon as there are any; none once the command has ended."""
    while process.poll() is None:
        with suppress(psutil.NoSuchProcess):
            if found := psutil.Process(process.pid).children():
                return found
    return []
