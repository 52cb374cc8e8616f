"""Records of every bench command: one schema.

A file holds JSON lines: one ``run``, then ``ceiling``, ``measurement`` and ``resources``. A line
that does not fit is reported and the rest is read; a file without its ``run`` line is refused.
Files of the schemas before this one are read as well.
"""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Literal

from hmc_fast.bench.cases import PASSES
from hmc_fast.bench.engine_facts import EngineFacts
from hmc_fast.bench.measuring.ceilings import Ceiling
from hmc_fast.bench.measuring.resources import KernelResources
from hmc_fast.errors import UserError
from hmc_fast.files import write_text
from hmc_fast.schema import STRICT, parse_json

SCHEMA = "hmc-fast-bench/2"
OLD_FOLDS_SCHEMA = "hmc-fast-bench/1"
OLD_PROFILE_SCHEMA = "hmc-fast-profile/1"
RECORD_FILE = "record.jsonl"
Status = Literal["ok", "built", "unavailable", "parity failed", "error", "skipped"]
Launch = Literal["stream", "graph"]
_TIMES = ("p20_ms", "p50_ms", "p80_ms", "p95_ms", "min_ms", "max_ms", "floor_ms")


@dataclass(frozen=True)
class FoldScores:
    """Out-of-fold figures of a peer: accuracy (mean and sample std over folds) and pooled AUC.

    The AUC has its 95 % interval. Differences are from the eager fp32 reference.
    """

    __pydantic_config__ = STRICT
    accuracy_mean: float | None
    accuracy_std: float | None
    auc: float | None
    auc_low: float | None
    auc_high: float | None
    max_logit_difference: float
    flipped_decisions: int
    auc_difference: float | None


@dataclass(frozen=True)
class Measurement:
    """One peer on one case and task.

    ``load`` is what other processes and the hypervisor took of all cores while this was timed, in
    per cent, in the quietest of ``attempts`` (the larger of two timings);
    None or empty where it was not or too shortly seen.

    Times are of single calls, in ms, over ``samples`` of them, none left out; ``outliers`` counts
    those far beyond the median, ``repeats_ms`` holds the medians of consecutive shares of the
    samples, and ``host_p50_ms`` is the host's part. They are None unless ``status`` is ``ok``.
    ``peak_mib`` is what a call adds to its inputs, at its highest, for operators and blocks; for
    models everything (parameters, images, the call), but None for runtimes, which keep their
    memory between calls; for the main job a process of its own. ``budget_units`` is the error
    against fp64 over what is allowed, of ``budget_tensor``. ``ceiling_share`` is the floor over
    the median. ``speed_up`` is the fastest other peer's median over this one's. Work, floor and
    bound are None for models, ``scores`` for everything but the main job, ``engine`` unless
    ``status`` is ``built``: an engine that this machine can build and not run. ``variant`` is the
    peer's fastest; ``tried`` has the median of each of its variants in ms, or why it has none,
    and is None where there is one alone.
    """

    __pydantic_config__ = STRICT
    case: str
    peer: str
    precision: str
    task: str
    launch: Launch
    status: Status
    reason: str | None = None
    variant: str | None = None
    samples: int | None = None
    p20_ms: float | None = None
    p50_ms: float | None = None
    p80_ms: float | None = None
    p95_ms: float | None = None
    min_ms: float | None = None
    max_ms: float | None = None
    host_p50_ms: float | None = None
    outliers: int | None = None
    repeats_ms: list[float] | None = None
    flops: int | None = None
    bytes: int | None = None
    floor_ms: float | None = None
    bound: str | None = None
    tflops: float | None = None
    ceiling_share: float | None = None
    peak_mib: float | None = None
    budget_units: float | None = None
    budget_tensor: str | None = None
    speed_up: float | None = None
    throughput_per_s: float | None = None
    throughput_batch: int | None = None
    clocks: dict[str, float] | None = None
    load: dict[str, float] | None = None
    scores: FoldScores | None = None
    tried: dict[str, float | str] | None = None
    engine: EngineFacts | None = None

    def __post_init__(self) -> None:
        """Raises ``ValueError`` for a time that is none, and for names that no page can show."""
        times = [getattr(self, name) for name in _TIMES] + (self.repeats_ms or [])
        if any(time is not None and not time > 0 for time in times):
            raise ValueError("a time is not above 0")
        if not self.label.isprintable():
            raise ValueError("a name holds control characters")

    @property
    def key(self) -> tuple[str, str, str, str, str]:
        """What the same measurement has in another record."""
        return self.case, self.peer, self.precision, self.task, self.launch

    @property
    def label(self) -> str:
        launch = " (CUDA graph)" if self.launch == "graph" else ""
        return f"{self.case} {self.task} {self.precision} {self.peer}{launch}"

    @property
    def subject(self) -> str:
        """The operator, block or model of the case."""
        return self.case.split("@")[0]

    @property
    def size(self) -> int:
        return int(self.case.split("@")[1].split("x")[0])

    @property
    def batch(self) -> int:
        return int(self.case.rsplit("x", 1)[1])


@dataclass(frozen=True)
class Study:
    """What the main job trained and on what.

    ``attention_share`` maps each image size to attention's share of the model's operations;
    ``fold_metrics`` are those of the eager fp32 reference. ``seconds`` is the time of the whole
    job, training included; None where an earlier start had done a part of it.
    """

    __pydantic_config__ = STRICT
    data: dict[str, Any]
    protocol: str
    attention_share: dict[str, float]
    fold_metrics: list[dict[str, float | None]]
    seconds: float | None = None

    def __post_init__(self) -> None:
        """Raises ``ValueError`` for a duration that is none."""
        if self.seconds is not None and not self.seconds > 0:
            raise ValueError("seconds is not above 0")


@dataclass(frozen=True)
class Record:
    """A run: where, with what, and its lines. ``problems`` are lines that could not be read."""

    job: str
    created: str
    environment: dict[str, Any]
    device: dict[str, Any]
    options: dict[str, Any]
    study: Study | None = None
    ceilings: list[Ceiling] = field(default_factory=list)
    measurements: list[Measurement] = field(default_factory=list)
    resources: list[KernelResources] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def ceiling(self, precision: str) -> Ceiling | None:
        """The highest of the run: a share of it flatters nobody."""
        known = (c for c in self.ceilings if c.precision == precision)
        return max(known, key=lambda c: c.matmul_tflops, default=None)

    @property
    def kernel_rows(self) -> list[Measurement]:
        """Rows of operators and blocks."""
        return [row for row in self.measurements if row.task in PASSES]

    @property
    def model_rows(self) -> list[Measurement]:
        """Rows of whole models."""
        return [row for row in self.measurements if row.task not in PASSES]


_LINE_KINDS: dict[str, tuple[type[Any], str]] = {
    "ceiling": (Ceiling, "ceilings"),
    "measurement": (Measurement, "measurements"),
    "resources": (KernelResources, "resources"),
}


@dataclass(frozen=True)
class _Header:
    """The ``run`` line."""

    __pydantic_config__ = STRICT
    job: str
    created: str
    environment: dict[str, Any]
    device: dict[str, Any]
    options: dict[str, Any]
    study: Study | None


_HEADER = tuple(f.name for f in fields(_Header))


def write_record(path: Path, record: Record) -> None:
    """Write atomically: what was there stays until the new file is whole."""
    values = asdict(record)
    header = {name: values[name] for name in _HEADER}
    lines: list[dict[str, Any]] = [{"schema": SCHEMA, "kind": "run", **header}]
    for kind, (_, name) in _LINE_KINDS.items():
        lines += [{"schema": SCHEMA, "kind": kind, **line} for line in values[name]]
    write_text(path, "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines))


def merged(records: Sequence[Record], job: str) -> Record:
    """The lines of ``records`` of one machine under the header of the first, as ``job``."""
    first = records[0]
    resources = [line for record in records for line in record.resources]
    return replace(
        first,
        job=job,
        options={"cases": [case for r in records for case in r.options.get("cases", [])]},
        ceilings=[line for record in records for line in record.ceilings],
        measurements=[line for record in records for line in record.measurements],
        resources=list(dict.fromkeys(resources)),
        problems=[line for record in records for line in record.problems],
    )


def keep_earlier(path: Path) -> Path | None:
    """Rename a record that lies at ``path`` after the time of its run; its new path, or None.

    Raises :class:`UserError` where it cannot be renamed.
    """
    if not path.exists():
        return None
    try:
        created = read_record(path).created
    except UserError:
        created = "unreadable"
    stem = f"{path.stem}-{re.sub('[^0-9A-Za-z]', '', created.split('+')[0])}"
    kept = path.with_stem(stem)
    number = 2
    while kept.exists():
        kept = path.with_stem(f"{stem}-{number}")
        number += 1
    try:
        return path.rename(kept)
    except OSError as error:
        raise UserError(
            f"{path}: an earlier record, cannot be renamed ({error.strerror})"
        ) from None


def read_record(path: Path) -> Record:
    """Reread a record.

    Raises :class:`UserError` for a file that cannot be read or has no ``run`` line; any other line
    that does not fit, by its schema or its fields, becomes one of ``problems``.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    header: dict[str, Any] | None = None
    parts: dict[str, list[Any]] = {name: [] for _, name in _LINE_KINDS.values()}
    problems = []
    for number, line in enumerate(lines, start=1):
        try:
            values = parse_json(dict[str, Any], line, "JSON")
            kind, values = _current(values, header)
            if kind == "run":
                header = vars(_as(_Header, values))
            else:
                line_type, name = _LINE_KINDS[kind]
                parts[name].append(_as(line_type, values))
        except (UserError, AttributeError, KeyError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            problems.append(f"{path.name} line {number}: is no line of a record ({reason})")
    if header is None:
        detail = f"; {problems[0]}" if problems else ""
        raise UserError(
            f"{path}: has no line of kind run; make a record with `hmc-fast bench` or one of its "
            f"subcommands{detail}"
        )
    return Record(**{**header, **parts, "problems": problems})


def _current(values: dict[str, Any], header: dict[str, Any] | None) -> tuple[str, dict[str, Any]]:
    """A line of any schema that is read, in the terms of this one, and its kind."""
    schema, kind = values.pop("schema"), values.pop("kind")
    if schema == SCHEMA:
        return kind, values
    if schema == OLD_PROFILE_SCHEMA:
        return kind, _of_old_profile(kind, values)
    if schema != OLD_FOLDS_SCHEMA:
        raise ValueError(f"its schema is {schema}, this release reads {SCHEMA} and two before it")
    if kind == "run":
        return kind, _of_old_run(values)
    if header is None:
        raise ValueError("it stands before the run")
    return "measurement", _of_old_row(values, header["options"]["model"])


_OLD_NAMES = {"what": "task", "how": "variant"}
_OLD_PEERS = {"compiled_sdpa": "sdpa", "compiled_flex": "flex"}


def _of_old_profile(kind: str, values: dict[str, Any]) -> dict[str, Any]:
    if kind == "run":
        return {"job": "profile", "study": None, **values}
    renamed = {_OLD_NAMES.get(name, name): value for name, value in values.items()}
    if "peer" in renamed:
        renamed["peer"] = _OLD_PEERS.get(renamed["peer"], renamed["peer"])
    return renamed


def _of_old_run(values: dict[str, Any]) -> dict[str, Any]:
    study = {f.name: values.pop(f.name) for f in fields(Study) if f.name in values}
    gpu = values["environment"].get("gpu")
    device = {"name": gpu or values["environment"].get("cpu"), "kind": "cuda" if gpu else "cpu"}
    return {"job": "folds", "device": device, "study": study, **values}


def _of_old_row(values: dict[str, Any], model: str) -> dict[str, Any]:
    """A row of the old main job: one film a call, its scores beside its times."""
    scores = {f.name: values.pop(f.name) for f in fields(FoldScores)}
    error, allowed = values.pop("parity_max_error"), values.pop("parity_allowed")
    known = error is not None and allowed
    return {
        "case": f"{model}@{values.pop('size')}x1",
        "peer": values.pop("implementation"),
        "task": "inference",
        "launch": "stream",
        "p50_ms": values.pop("latency_p50_ms"),
        "p95_ms": values.pop("latency_p95_ms"),
        "samples": values.pop("latency_samples"),
        "throughput_per_s": values.pop("throughput_films_per_s"),
        "peak_mib": values.pop("inference_peak_mib"),
        "budget_units": error / allowed if known else None,
        "budget_tensor": "logits" if known else None,
        "scores": None if scores["max_logit_difference"] is None else scores,
        **values,
    }


def _as(line_type: type[Any], values: dict[str, Any]) -> Any:
    """``values`` as a record of ``line_type``; raises ``UserError`` where a field does not fit."""
    return parse_json(line_type, json.dumps(values), "its content")
