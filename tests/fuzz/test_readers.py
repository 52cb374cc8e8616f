"""Every reader on damaged files: it reads them, or says in one line why not; nothing else.

``make test`` tries 2,000 files, ``make fuzz`` 20,000 with a seed of its own:
``HMC_FAST_FUZZ_INPUTS`` and ``--hypothesis-seed`` decide.
"""

import hashlib
import io
import json
import logging
import os
import struct
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from dicom_files import codestream, lut, mammogram, save, with_frame
from hypothesis import HealthCheck, Phase, given, settings
from mutations import damaged_bytes, damaged_json, damaged_text
from PIL import Image
from pydicom.sequence import Sequence
from pydicom.uid import JPEG2000Lossless, JPEGLosslessSV1, JPEGLSLossless, RLELossless

from hmc_fast import UserError
from hmc_fast.bench.record import read_record
from hmc_fast.checkpoint import load_model
from hmc_fast.data import read_films, read_folds, read_pixels
from hmc_fast.data.identity import identify
from hmc_fast.data.pixels import film_header
from hmc_fast.evaluation import read_predictions
from hmc_fast.export.sidecar import read_sidecar
from hmc_fast.prediction.manifest import MANIFEST_FILE, frozen_manifest
from hmc_fast.prediction.sources import Source
from hmc_fast.study import read_study

INPUTS = int(os.environ.get("HMC_FAST_FUZZ_INPUTS", "2000"))
SHARES = {
    "dicom": 0.25, "pictures": 0.2, "info": 0.08, "films": 0.08, "predictions": 0.08,
    "folds": 0.07, "sidecar": 0.05, "record": 0.05, "study": 0.05, "manifest": 0.05,
    "checkpoint": 0.04,
}  # fmt: skip
"""Of the inputs, by reader."""
LONGEST_LINE = 1000
FILM = np.random.default_rng(1).integers(0, 4096, (24, 20), np.uint16)
ARTEFACT = b"graph"
GOLDEN = Path(__file__).parents[1] / "golden"
PREDICTIONS = GOLDEN / "study" / "resnet18" / "fold0" / "predictions.csv"
RESULTS = Path(__file__).parents[2] / "bench" / "results"
RECORD = RESULTS / "cpu-kernels.jsonl"
STUDY = RESULTS / "study" / "mias-seven-models.jsonl"


def fuzz(reader: str) -> Callable[[Callable[..., None]], Callable[..., None]]:
    """``reader``'s share of the inputs; without a seed always the same ones."""
    return settings(
        max_examples=max(1, round(INPUTS * SHARES[reader])),
        derandomize="HMC_FAST_FUZZ_INPUTS" not in os.environ,
        database=None,
        deadline=None,
        phases=(Phase.generate, Phase.shrink),
        suppress_health_check=list(HealthCheck),
    )


@pytest.fixture(scope="module")
def outcomes() -> Iterator[Counter[tuple[str, str]]]:
    """Counts by reader and outcome, printed at the end (``pytest -s`` shows them)."""
    counts: Counter[tuple[str, str]] = Counter()
    yield counts
    for (reader, outcome), count in sorted(counts.items()):
        print(f"\nfuzz: {reader}: {count} {outcome}", end="")


@pytest.fixture(autouse=True)
def _quiet(caplog: pytest.LogCaptureFixture) -> None:
    """What pydicom logs of every damaged file would bury the one that matters."""
    caplog.set_level(logging.CRITICAL, "pydicom")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("fuzz")


def attempt(
    outcomes: Counter[tuple[str, str]], reader: str, read: Callable[[], object]
) -> object | None:
    """What ``read`` gives, or None after one clear line; any other exception fails the test."""
    result, line = None, None
    try:
        result = read()
    except UserError as error:
        line = str(error)
    assert line is None or (line.isprintable() and len(line) < LONGEST_LINE), repr(line)
    outcomes[reader, "fine" if line is None else "one clear line"] += 1
    return result


def read_film(path: Path) -> object:
    film = read_pixels(path)
    assert film.dtype == np.float32
    assert film.ndim == 2
    assert film.min() >= 0
    assert film.max() <= 1
    assert film_header(path)[:2] == film.shape
    return film


@pytest.fixture(scope="module")
def dicom_seeds(folder: Path) -> list[bytes]:
    lookup = Sequence([lut(0, 12, list(range(4096)))])
    datasets = [
        mammogram(FILM),
        mammogram(FILM, WindowCenter=[2000, 100], WindowWidth=[1500, 9], VOILUTSequence=lookup),
        mammogram(FILM.astype(np.int16) - 9, RescaleSlope=2, RescaleIntercept=-7),
        mammogram(FILM, PixelPaddingValue=0, VOILUTFunction="SIGMOID", WindowCenter=9,
                  WindowWidth=900),
    ]  # fmt: skip
    run_lengths = mammogram(FILM)
    run_lengths.compress(RLELossless)
    datasets.append(run_lengths)
    for syntax in (JPEGLosslessSV1, JPEGLSLossless, JPEG2000Lossless):
        frame = codestream(FILM, syntax, folder)
        datasets.append(with_frame(frame, syntax, mammogram(FILM)))
    contents = [save(dataset, folder / "seed.dcm").read_bytes() for dataset in datasets]
    return [*contents, deflated(contents[0])]


def deflated(content: bytes) -> bytes:
    """An explicit little-endian file as a deflated one."""
    start = 132 + 12 + struct.unpack_from("<L", content, 140)[0]
    meta = content[:start].replace(b"1.2.840.10008.1.2.1\0", b"1.2.840.10008.1.2.1.99")
    compressor = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    return meta + compressor.compress(content[start:]) + compressor.flush()


@pytest.fixture(scope="module")
def picture_seeds() -> list[bytes]:
    deep, grey = Image.fromarray(FILM), Image.fromarray((FILM >> 4).astype(np.uint8))
    seeds = [b"P5\n20 24\n65535\n" + FILM.byteswap().tobytes(), b"P2\n2 2\n255\n0 9 255 7\n"]
    for picture, name, options in (
        (grey, "PPM", {}),
        (grey, "PNG", {}),
        (deep, "PNG", {}),
        (grey.convert("RGB"), "PNG", {}),
        (grey, "TIFF", {}),
        (deep, "TIFF", {"compression": "tiff_lzw"}),
        (grey, "JPEG", {"quality": 90}),
    ):
        file = io.BytesIO()
        picture.save(file, name, **options)
        seeds.append(file.getvalue())
    return seeds


def test_dicom(folder: Path, dicom_seeds: list[bytes], outcomes: Counter[tuple[str, str]]) -> None:
    path = folder / "film.dcm"

    @fuzz("dicom")
    @given(damaged_bytes(dicom_seeds))
    def check(content: bytes) -> None:
        path.write_bytes(content)
        identify(path)
        attempt(outcomes, "dicom", lambda: read_film(path))

    check()


def test_pictures(
    folder: Path, picture_seeds: list[bytes], outcomes: Counter[tuple[str, str]]
) -> None:
    path = folder / "film.png"

    @fuzz("pictures")
    @given(damaged_bytes(picture_seeds))
    def check(content: bytes) -> None:
        path.write_bytes(content)
        attempt(outcomes, "pictures", lambda: read_film(path))

    check()


@pytest.mark.parametrize(
    ("reader", "name", "separators", "seeds"),
    [
        ("info", "Info.txt", " ", ["free text\n\nmdb001 G CIRC B 5 4 3\nmdb001 G CALC M *NOTE 3*\n"
                                   "mdb002 F NORM\n"]),
        ("films", "films.csv", ",", ["path,patient,label,side,view,kind,x,y,radius\n"
                                     "mdb001.pgm,1,malignant,L,MLO,CIRC,5,4,3\n"
                                     "mdb002.pgm,1,normal,R,MLO,,,,\n"]),
        ("predictions", "predictions.csv", ",", [PREDICTIONS.read_text()]),
    ],
)  # fmt: skip
def test_tables(
    tmp_path: Path,
    outcomes: Counter[tuple[str, str]],
    reader: str,
    name: str,
    separators: str,
    seeds: list[str],
) -> None:
    for film in ("mdb001.pgm", "mdb002.pgm"):
        Image.fromarray(np.zeros((24, 20), np.uint8)).save(tmp_path / film)
    if reader == "predictions":
        read: Callable[[], object] = partial(read_predictions, tmp_path / name)
    else:
        data = tmp_path / name if reader == "films" else tmp_path
        read = partial(read_films, data, allow_missing=True)

    @fuzz(reader)
    @given(damaged_text([seed.encode() for seed in seeds], separators))
    def check(content: bytes) -> None:
        (tmp_path / name).write_bytes(content)
        attempt(outcomes, reader, read)

    check()


def described(folder: Path, reader: str) -> tuple[list[Any], Callable[[bytes], object]]:
    """What a description holds when it is right, and what reads it."""
    path = folder / "file.json"

    def from_file(read: Callable[[Path], object]) -> Callable[[bytes], object]:
        def run(content: bytes) -> object:
            path.write_bytes(content)
            return read(path)

        return run

    if reader == "folds":
        return [json.loads((GOLDEN / "study" / "folds.json").read_text())], from_file(read_folds)
    if reader == "record":
        lines = [json.loads(line) for line in RECORD.read_text().splitlines()]
        kinds = {line["kind"]: line for line in lines}
        return list(kinds.values()), from_file(read_record)
    if reader == "study":
        first, job = STUDY.read_bytes().splitlines()[:2]

        def read_job(content: bytes) -> object:
            path.write_bytes(first + b"\n" + content)
            return read_study(path)

        return [json.loads(job)], read_job
    if reader == "manifest":
        Image.fromarray(np.zeros((24, 20), np.uint8)).save(folder / "mdb001.pgm")
        frozen = folder / "parts" / MANIFEST_FILE
        sources = [Source(folder / "mdb001.pgm")]
        frozen_manifest(frozen.parent, sources, {"precision": "fp32"})

        def read_manifest(content: bytes) -> object:
            frozen.write_bytes(content)
            return frozen_manifest(frozen.parent, sources, {"precision": "fp32"})

        return [json.loads(frozen.read_text())], read_manifest
    if reader == "sidecar":
        (folder / "file").write_bytes(ARTEFACT)
        return [sidecar()], from_file(lambda _: read_sidecar(folder / "file"))

    def read_checkpoint(content: bytes) -> object:
        header = json.dumps({"__metadata__": {"hmc_fast": content.decode("latin-1")}}).encode()
        path.write_bytes(struct.pack("<Q", len(header)) + header)
        with torch.device("meta"):  # parameters of a model that is not there need no memory
            return load_model(path)

    return [json.loads((GOLDEN / "checkpoint.json").read_text())], read_checkpoint


def sidecar() -> dict[str, Any]:
    digest = hashlib.sha256(ARTEFACT).hexdigest()
    identity = {"name": "file", "size_bytes": len(ARTEFACT), "sha256": digest}
    checkpoint = json.loads((GOLDEN / "checkpoint.json").read_text())
    return {
        "format": 1, "kind": "onnx", "file": identity, "checkpoint": identity,
        "model": checkpoint["model"], "task": "malignant", "class_names": ["rest", "malignant"],
        "preprocessing": checkpoint["preprocessing"], "precision": "fp32", "quantisation": None,
        "opset": 20, "profile": {"minimum": 1, "optimum": 8, "maximum": 64}, "tensors": {},
        "engine": None, "versions": {}, "verified": None, "attention": None,
    }  # fmt: skip


@pytest.mark.parametrize(
    "reader", ["folds", "sidecar", "record", "study", "manifest", "checkpoint"]
)
def test_descriptions(tmp_path: Path, outcomes: Counter[tuple[str, str]], reader: str) -> None:
    seeds, read = described(tmp_path, reader)

    @fuzz(reader)
    @given(damaged_json(seeds))
    def check(content: bytes) -> None:
        attempt(outcomes, reader, lambda: read(content))

    check()
