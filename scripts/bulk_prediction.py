"""An archive of small synthetic DICOM films through ``predict``: memory, pace, and resuming.

bulk_prediction.py speed RECORD.json    films a second in bulk and one by one; wants a quiet machine
bulk_prediction.py archive RECORD.json [--films N]    memory over an archive, and its resumption
bulk_prediction.py page RECORD.json PAGE    writes the page's lines

The commands run as a user runs them. The model is untrained: its scores are not looked at.
"""

import argparse
import json
import statistics
import subprocess
import sys
import time
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
import psutil
import torch
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import DigitalMammographyXRayImageStorageForPresentation, ExplicitVRLittleEndian

from hmc_fast import create_model
from hmc_fast.bench.measuring.load import cpu_times, load_between, load_marks
from hmc_fast.checkpoint import CheckpointMetadata, save_checkpoint
from hmc_fast.data import Preprocessing
from hmc_fast.environment import environment
from hmc_fast.files import write_json, write_text
from hmc_fast.reporting import between_marks

MODEL = "hmc_net_resnet18"
ARCHIVE_FILMS, ARCHIVE_SIDE = 20_000, 64
SPEED_FILMS, SPEED_SIDE, SINGLE_RUNS = 192, 224, 3
FILM_SIDE = 64
UID = "1.2.826.0.1.3680043.8.498.20000"
BEGIN, END = "<!-- bulk:begin -->", "<!-- bulk:end -->"


def write_film(path: Path, number: int, rng: np.random.Generator) -> None:
    """Noise of 12 bits; four films a patient."""
    dataset = Dataset()
    dataset.file_meta = FileMetaDataset()
    dataset.file_meta.TransferSyntaxUID = ExplicitVRLittleEndian
    dataset.SOPClassUID = DigitalMammographyXRayImageStorageForPresentation
    dataset.file_meta.MediaStorageSOPClassUID = dataset.SOPClassUID
    dataset.SOPInstanceUID = dataset.file_meta.MediaStorageSOPInstanceUID = f"{UID}.{number}"
    dataset.Modality, dataset.PresentationIntentType = "MG", "FOR PRESENTATION"
    dataset.PatientID = f"P{number // 4}"
    dataset.ImageLaterality, dataset.ViewPosition = "LR"[number % 2], ("CC", "MLO")[number // 2 % 2]
    dataset.PhotometricInterpretation, dataset.SamplesPerPixel = "MONOCHROME2", 1
    dataset.Rows = dataset.Columns = FILM_SIDE
    dataset.BitsAllocated, dataset.BitsStored, dataset.HighBit = 16, 12, 11
    dataset.PixelRepresentation = 0
    dataset.PixelData = rng.integers(0, 4096, (FILM_SIDE, FILM_SIDE), dtype=np.uint16).tobytes()
    dataset.save_as(path, enforce_file_format=True)


def write_checkpoint(path: Path, side: int) -> None:
    torch.manual_seed(0)
    model = create_model(MODEL)
    shape = Preprocessing.square(side)
    classes = ("rest", "malignant")
    save_checkpoint(
        path, model, CheckpointMetadata(model.config, "malignant", classes, shape, {}, {})
    )


def command(*words: object) -> list[str]:
    return [sys.executable, "-m", "hmc_fast", "predict", *map(str, words), "--json"]


def timed(words: list[str]) -> tuple[dict[str, Any], float]:
    """What a command prints as JSON, and the seconds of the whole command."""
    start = time.perf_counter()
    done = subprocess.run(words, check=True, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL)
    seconds = time.perf_counter() - start
    printed: dict[str, Any] = json.loads(done.stdout)
    return printed, seconds


def watched(words: list[str], parts: Path, chunks: int) -> tuple[dict[str, Any], list[float]]:
    """The same, and the MiB resident in each quarter of the chunks: the most in it."""
    most = [0.0] * 4
    with subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process:
        while process.poll() is None:
            done = len(list(parts.glob("part-*")))
            if 0 < done < chunks:
                quarter = 4 * done // chunks
                resident = psutil.Process(process.pid).memory_info().rss / 2**20
                most[quarter] = max(most[quarter], resident)
            time.sleep(0.2)
        assert process.stdout is not None
        printed: dict[str, Any] = json.loads(process.stdout.read())
    return printed, most


def archive(folder: Path, films: int) -> dict[str, Any]:
    """Memory, pace and resumption: all films into a table, then the same command again."""
    write_checkpoint(folder / "archive.safetensors", ARCHIVE_SIDE)
    out = folder / "scores.csv"
    words = command(folder / "films", "--checkpoint", folder / "archive.safetensors", "--out", out)
    before = cpu_times()
    first, most = watched(words, Path(f"{out}.parts"), films // 64)
    load = load_between(before, cpu_times())
    again, seconds = timed(words)
    if (first["films"], first["failed"], again["scored_now"]) != (films, 0, 0):
        raise SystemExit("not every film was scored once")
    return {
        "films": films,
        "network_side": ARCHIVE_SIDE,
        "films_per_second": first["films_per_second"],
        "resident_mib_by_quarter": most,
        "resume_seconds": seconds,
        "load": load,
        "marks": load_marks(load),
    }


def speed(folder: Path) -> dict[str, Any]:
    """Films a second in bulk, by single forward passes, and by a command for each film."""
    write_checkpoint(folder / "speed.safetensors", SPEED_SIDE)
    films = sorted((folder / "films").iterdir())
    model = ("--checkpoint", folder / "speed.safetensors")
    before = cpu_times()
    bulk, _ = timed(command(*films, *model, "--out", folder / "bulk.csv"))
    one = command(*films, *model, "--out", folder / "one.csv", "--batch-size", 1)
    single_passes, _ = timed(one)
    alone = [timed(command(film, *model))[1] for film in films[:SINGLE_RUNS]]
    load = load_between(before, cpu_times())
    return {
        "films": len(films),
        "network_side": SPEED_SIDE,
        "films_per_second": bulk["films_per_second"],
        "single_pass_films_per_second": single_passes["films_per_second"],
        "single_command_seconds": statistics.median(alone),
        "load": load,
        "marks": load_marks(load),
    }


def lines(record: dict[str, Any]) -> str:
    """The record as the page shows it."""
    whole, pace = record["archive"], record["speed"]
    first, *_, last = whole["resident_mib_by_quarter"]
    made = pace["environment"]
    return "\n".join(
        [
            f"- {pace['films']} synthetic DICOM films of {FILM_SIDE}², {MODEL} at "
            f"{pace['network_side']}²: {pace['films_per_second']:.1f} films a second in batches of "
            f"8, {pace['single_pass_films_per_second']:.1f} in batches of one, "
            f"{1 / pace['single_command_seconds']:.2f} by a command for each film"
            f"{_under(pace)}.",
            f"- {whole['films']:,} such films at {whole['network_side']}²: "
            f"{whole['films_per_second']:.0f} films a second{_under(whole)}; at most {first:.0f} "
            f"MiB resident in the first quarter, {last:.0f} MiB in the last. The same command "
            f"again, start-up and all, took {whole['resume_seconds']:.1f} s.",
            f"- {made['cpu']}, {made['cpu_threads']} threads; "
            "[record](../bench/results/bulk-prediction.json) by `scripts/bulk_prediction.py`.",
        ]
    )


def _under(part: dict[str, Any]) -> str:
    return f" (under load: {', '.join(part['marks'])})" if part["marks"] else ""


def updated(text: str, record: dict[str, Any]) -> str:
    """``text`` with the lines between its marks made again."""
    return between_marks(text, BEGIN, END, lines(record))


def measure(what: str, films: int) -> dict[str, Any]:
    """One part of the record, and what it was made with."""
    with TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "films").mkdir()
        rng = np.random.default_rng(0)
        for number in range(films):
            write_film(folder / "films" / f"{number:06d}.dcm", number, rng)
        found = speed(folder) if what == "speed" else archive(folder, films)
    option = f" --films {films}" if what == "archive" else ""
    command = f"python scripts/bulk_prediction.py {what} bench/results/bulk-prediction.json{option}"
    return {**found, "environment": {**environment(), "command": command}}


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("what", choices=("speed", "archive", "page"))
    parser.add_argument("record", type=Path)
    parser.add_argument("page", type=Path, nargs="?")
    parser.add_argument("--films", type=int, default=ARCHIVE_FILMS)
    given = parser.parse_args()
    record = json.loads(given.record.read_text(encoding="utf-8")) if given.record.exists() else {}
    if given.what == "page":
        write_text(given.page, updated(given.page.read_text(encoding="utf-8"), record))
    else:
        count = SPEED_FILMS if given.what == "speed" else given.films
        write_json(given.record, {**record, given.what: measure(given.what, count)})
