"""Every command that writes, as a small job; and what of a result is the same in each run."""

import csv
import hashlib
import io
import json
import re
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from safetensors.torch import load

TRAINING = "--size 32 --epochs 2 --batch-size 18 --dropout 0.1"
OTHER_TRAINING = "--size 32 --epochs 3 --batch-size 18 --dropout 0.1"
TIMED = "--seconds 0.01 --precision fp32"


@dataclass(frozen=True)
class Job:
    """A command line: ``{out}`` is its output, other names are inputs.

    ``other`` is a line with the same output and other settings. ``resumes`` says that a folder
    belongs to its settings; else a result is replaced by the next. One that is done ``once``
    refuses its own finished folder. ``slow`` ones are run by hand.
    """

    line: str
    out: str
    other: str
    resumes: bool = False
    once: bool = False
    slow: bool = False

    @property
    def name(self) -> str:
        """The command's words, with a mark where it has a further job."""
        return self.line.partition(" {")[0].partition(" --")[0]

    def words(self, line: str, disk: Path, inputs: dict[str, Path]) -> list[str]:
        return [word.format(**inputs, out=disk / self.out) for word in line.split()]


def job(line: str, out: str, *changes: tuple[str, str], **kind: bool) -> Job:
    """A job whose other settings are ``changes`` of the line."""
    other = line
    for was, now in changes:
        assert was in other
        other = other.replace(was, now)
    return Job(line, out, other, **kind)


JOBS = (
    job("phantoms --out {out} --patients 2 --size 64", "p", ("64", "96"), resumes=True,
        once=True),
    job(
        "train --data {data} --out {out} --model resnet18 --folds 2 " + TRAINING, "t",
        (TRAINING, OTHER_TRAINING), resumes=True, once=True,
    ),
    job(
        "cv --data {data} --out {out} --model resnet18 --folds 2 " + TRAINING, "s",
        (TRAINING, OTHER_TRAINING), resumes=True,
    ),
    job(
        "evaluate --checkpoint {model} --data {data} --out {out}", "e.csv",
        ("{model}", "{model} --checkpoint {second}"),
    ),
    job(
        "predict {data} --checkpoint {model} --out {out}", "p.csv", ("{model}", "{second}"),
        resumes=True,
    ),
    job(
        "explain {data}/mdb001.pgm {data}/mdb002.pgm --checkpoint {model} --out {out} --maps", "x",
        ("{model}", "{second}"),
    ),
    job(
        "localise {model} --data {data} --out {out} --steps 2 --films 2 --sanity-films 1 "
        "--method gradcam", "l", ("--films 2", "--films 3"),
    ),
    job(
        "leakage-probe --data {data} --out {out} --model resnet18 --folds 2 --copies 2 "
        + TRAINING, "k", (TRAINING, OTHER_TRAINING), resumes=True, slow=True,
    ),
    job(
        "verify {onnx} --data {data} --films 4 --out {out} --no-record", "v.json",
        ("--films 4", "--films 5"), slow=True,
    ),
    job(
        "bench --data {data} --out {out} --model resnet18 --size 32 --folds 2 --epochs 1 "
        "--peer eager " + TIMED, "b", ("--epochs 1", "--epochs 2"), resumes=True, slow=True,
    ),
    job(
        "bench kernels --case hsa_c5@32x1 --peer eager --out {out} --pass forward " + TIMED, "bk",
        ("hsa_c5", "hsa_c4"), slow=True,
    ),
    job(
        "bench model --case resnet18@32x1 --peer eager --out {out} " + TIMED, "bm",
        ("32x1", "64x1"), slow=True,
    ),
    job("bench report {record} --out {out}", "br", ("{record}", "{profile}")),
    job("study report {study} --out {out}", "r", ("--out", "--metric accuracy --out")),
    job("study record {study} --out {out}", "r.jsonl", ("{study}", "{study} --config {none}")),
    job(
        "study lesions --data {large} --weights {trunk} --trunk resnet18 --size 256 --folds 2 "
        "--seeds 1 --out {out}", "ls", ("--folds 2", "--folds 3"), resumes=True, slow=True,
    ),
    job("export onnx {model} --out {out}", "o.onnx", ("{model}", "{second}"), slow=True),
    job(
        "export tensorrt {model} --out {out} --target sm_89 --batch 1,1,2", "o.engine",
        ("{model}", "{second}"), slow=True,
    ),
    job(
        "export kernels {model} --target sm_90 --out {out}", "c", ("sm_90", "sm_80"), slow=True,
    ),
    job("export triton-server {onnx} --out {out}", "tr", ("--out", "--readers 2 --out"),
        resumes=True, once=True),
    job(
        "kernels resources --target sm_80 --kernel delta --out {out}", "k.md", ("sm_80", "sm_86"),
        slow=True,
    ),
)  # fmt: skip
ELSEWHERE = {
    "score": "writes as predict does, and needs a server: tests/serving",
    "serve dicom": "stays and answers: tests/node/test_spool.py, tests/node/test_orthanc.py",
    "gpu-check": "needs a GPU: tests/bench/gpu/test_runner.py",
    "kernels tune": "needs a GPU",
    "bench targets": "is bench model with other cases, of minutes",
    "doctor": "writes nothing",
    "bench compare": "writes nothing",
}
"""Commands without a job here, and why."""


@dataclass(frozen=True)
class Undisturbed:
    """A run without a fault: its files' essences, their pages, how often it changed the disk."""

    files: dict[str, str]
    pages: int
    steps: int


BESIDE = re.compile(r"(^|/)(\.?lock|.*\.lock|record-\d{8}T\d{6}.*\.jsonl)$")
"""Locks, and records that a bench has kept of an earlier run."""
CHANGING = (
    "environment", "created", "seconds", "films_per_second", "scored_now", "training_patients",
    "versions", "sha256", "size_bytes",
)  # fmt: skip
"""Keys whose values another run may have otherwise."""
TIMES = ("b", "bk", "bm")
"""Outputs that hold times, which no two runs have alike."""


def tree(folder: Path) -> dict[str, bytes]:
    """All files, by their names below ``folder``."""
    files = (path for path in sorted(folder.rglob("*")) if path.is_file())
    named = {str(path.relative_to(folder)): path for path in files}
    return {name: path.read_bytes() for name, path in named.items() if not BESIDE.search(name)}


def essence(name: str, content: bytes) -> str:
    """What two runs of one job have alike of a file; fails where the file is not whole."""
    read = _READERS.get(Path(name).suffix, _digest)
    values = read(content)
    return "timed" if name.split("/")[0] in TIMES else values


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _json(content: bytes) -> str:
    return json.dumps(_lasting(json.loads(content)), sort_keys=True)


def _lasting(values: Any) -> Any:
    if isinstance(values, dict):
        return {k: _lasting(v) for k, v in values.items() if k not in CHANGING}
    return [_lasting(v) for v in values] if isinstance(values, list) else values


def _json_lines(content: bytes) -> str:
    assert content.endswith(b"\n")
    return "\n".join(_json(line) for line in content.splitlines())


def _tensors(content: bytes) -> str:
    digest = hashlib.sha256()
    for name, tensor in sorted(load(content).items()):
        digest.update(f"{name} {tuple(tensor.shape)}".encode() + tensor.numpy().tobytes())
    return digest.hexdigest()


def _table(content: bytes) -> str:
    text = content.decode()
    assert text.endswith("\n")
    lengths = {len(row) for row in csv.reader(io.StringIO(text, newline=""))}
    assert len(lengths - {1}) <= 1, "a line is cut"  # a part's last line is its digest
    return text


def _picture(content: bytes) -> str:
    with Image.open(io.BytesIO(content)) as picture:
        return hashlib.sha256(picture.tobytes()).hexdigest()


def _text(content: bytes) -> str:
    assert content.endswith(b"\n")
    return hashlib.sha256(content).hexdigest()


def _page(content: bytes) -> str:
    assert content.rstrip().endswith(b"</html>")
    return hashlib.sha256(content).hexdigest()


def _state(content: bytes) -> str:
    torch.load(io.BytesIO(content), weights_only=True)
    return "a state"


def _machine_code(content: bytes) -> str:
    assert content, "is empty"
    return "machine code"


_READERS: dict[str, Callable[[bytes], str]] = {
    ".json": _json, ".jsonl": _json_lines, ".safetensors": _tensors, ".csv": _table,
    ".png": _picture, ".pgm": _picture, ".yaml": _text, ".txt": _text,
    ".html": _page, ".ckpt": _state, ".engine": _machine_code, ".onnx": _machine_code,
}  # fmt: skip
