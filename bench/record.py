"""Benchmark records: JSON lines, one schema, validated on read."""

import json
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal

from hmc_fast.errors import UserError
from hmc_fast.files import write_text

SCHEMA = "hmc-fast-bench/1"
Status = Literal["ok", "unavailable", "parity failed", "error"]


@dataclass(frozen=True)
class Row:
    """One implementation × precision at one image size.

    Speeds are None unless ``status`` is ``ok``. Latency is of one film; throughput is at
    ``throughput_batch`` films a call. Accuracy (mean and sample std over folds), AUC (pooled, with
    its 95 % interval) and the differences from the eager fp32 reference are there at the size the
    folds were trained at, None elsewhere.
    """

    implementation: str
    precision: str
    size: int
    status: Status
    reason: str | None = None
    latency_p50_ms: float | None = None
    latency_p95_ms: float | None = None
    latency_samples: int | None = None
    throughput_films_per_s: float | None = None
    throughput_batch: int | None = None
    inference_peak_mib: float | None = None
    parity_max_error: float | None = None
    parity_allowed: float | None = None
    accuracy_mean: float | None = None
    accuracy_std: float | None = None
    auc: float | None = None
    auc_low: float | None = None
    auc_high: float | None = None
    max_logit_difference: float | None = None
    flipped_decisions: int | None = None
    auc_difference: float | None = None


@dataclass(frozen=True)
class BenchRecord:
    """A run of the main job: what was run, where, on which data, and its rows.

    ``attention_share`` maps each image size to attention's share of the model's operations;
    ``fold_metrics`` are those of the eager fp32 reference.
    """

    created: str
    data: dict[str, Any]
    options: dict[str, Any]
    environment: dict[str, Any]
    protocol: str
    attention_share: dict[str, float]
    fold_metrics: list[dict[str, float | None]]
    rows: list[Row]


def write_record(path: Path, record: BenchRecord) -> None:
    """First line the run, then one line a row; written atomically."""
    header = {key: value for key, value in asdict(record).items() if key != "rows"}
    lines = [{"schema": SCHEMA, "kind": "run", **header}]
    lines += [{"schema": SCHEMA, "kind": "row", **asdict(row)} for row in record.rows]
    write_text(path, "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines))


def read_record(path: Path) -> BenchRecord:
    """Reread a record; raises :class:`UserError` naming the line that does not fit the schema."""
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    header: dict[str, Any] | None = None
    rows = []
    for number, line in enumerate(lines, start=1):
        try:
            values = json.loads(line)
            if values.pop("schema") != SCHEMA:
                raise ValueError(f"the schema is not {SCHEMA}")
            if values.pop("kind") == "row":
                rows.append(Row(**values))
            else:
                header = values
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise UserError(f"{path} line {number}: is no line of a record ({error})") from None
    expected = {field.name for field in fields(BenchRecord)} - {"rows"}
    if header is None or set(header) != expected:
        raise UserError(f"{path}: has no complete line of kind run")
    return BenchRecord(**header, rows=rows)
