"""Records of ``bench kernels``, ``bench model`` and ``bench targets``: one schema for all three.

A file holds JSON lines of four kinds: one ``run``, then ``ceiling``, ``measurement`` and
``resources``. A line that does not fit is reported and the rest is read; a file without its ``run``
line is refused.
"""

import json
import types
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from hmc_fast.bench.ceilings import Ceiling
from hmc_fast.errors import UserError
from hmc_fast.files import write_text

SCHEMA = "hmc-fast-profile/1"
Status = Literal["ok", "unavailable", "parity failed", "error", "skipped"]
Launch = Literal["stream", "graph"]


@dataclass(frozen=True)
class Measurement:
    """One peer on one case and pass.

    Times are of single calls, in ms, over ``samples`` of them, none left out; ``outliers`` counts
    those far beyond the median. They are None unless ``status`` is ``ok``. ``peak_mib`` is what a
    call adds to its inputs, at its highest, for operators and blocks, and everything (parameters,
    images, the call) for models. ``budget_units`` is the error against fp64 over what is allowed,
    of ``budget_tensor``. ``ceiling_share`` is the floor over the median. ``speed_up`` is the
    fastest other peer's median over this one's. Work, floor and bound are None for models.
    """

    case: str
    peer: str
    precision: str
    what: str
    launch: Launch
    status: Status
    reason: str | None = None
    how: str | None = None
    samples: int | None = None
    p20_ms: float | None = None
    p50_ms: float | None = None
    p80_ms: float | None = None
    min_ms: float | None = None
    max_ms: float | None = None
    outliers: int | None = None
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
    clocks: dict[str, float] | None = None

    @property
    def key(self) -> tuple[str, str, str, str, str]:
        """What the same measurement has in another record."""
        return self.case, self.peer, self.precision, self.what, self.launch

    @property
    def label(self) -> str:
        launch = " (CUDA graph)" if self.launch == "graph" else ""
        return f"{self.case} {self.what} {self.precision} {self.peer}{launch}"


@dataclass(frozen=True)
class KernelResources:
    """What a compiled kernel of a case takes: per thread, and shared memory per block.

    ``stack_bytes`` above zero are spilled registers. Where it did not compile, ``fault`` says why.
    """

    case: str
    precision: str
    what: str
    kernel: str
    architecture: str
    tile: str
    registers: int
    stack_bytes: int
    shared_kib: float
    mma: str
    fault: str | None = None


@dataclass(frozen=True)
class ProfileRecord:
    """A run: where, with what, and its lines. ``problems`` are lines that could not be read."""

    created: str
    environment: dict[str, Any]
    device: dict[str, Any]
    options: dict[str, Any]
    ceilings: list[Ceiling] = field(default_factory=list)
    measurements: list[Measurement] = field(default_factory=list)
    resources: list[KernelResources] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)

    def ceiling(self, precision: str) -> Ceiling | None:
        return next((c for c in self.ceilings if c.precision == precision), None)


_LINE_KINDS: dict[str, tuple[type[Any], str]] = {
    "ceiling": (Ceiling, "ceilings"),
    "measurement": (Measurement, "measurements"),
    "resources": (KernelResources, "resources"),
}
_HEADER = ("created", "environment", "device", "options")


def write_profile(path: Path, record: ProfileRecord) -> None:
    """Write atomically: what was there stays until the new file is whole."""
    header = {name: getattr(record, name) for name in _HEADER}
    lines: list[dict[str, Any]] = [{"schema": SCHEMA, "kind": "run", **header}]
    for kind, (_, name) in _LINE_KINDS.items():
        lines += [{"schema": SCHEMA, "kind": kind, **asdict(x)} for x in getattr(record, name)]
    write_text(path, "".join(json.dumps(line, allow_nan=False) + "\n" for line in lines))


def read_profile(path: Path) -> ProfileRecord:
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
            values = json.loads(line, parse_constant=_no_constant)
            schema, kind = values.pop("schema"), values.pop("kind")
            if schema != SCHEMA:
                raise ValueError(f"its schema is {schema}, this release reads {SCHEMA}")
            if kind == "run":
                header = _checked_header(values)
            else:
                line_type, name = _LINE_KINDS[kind]
                parts[name].append(line_type(**_checked(line_type, values)))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            reason = " ".join(str(error).split())
            problems.append(f"{path.name} line {number}: is no line of a record ({reason})")
    if header is None:
        detail = f"; {problems[0]}" if problems else ""
        raise UserError(
            f"{path}: has no line of kind run; make a record with `hmc-fast bench kernels`, "
            f"`bench model` or `bench targets`{detail}"
        )
    return ProfileRecord(
        **header,
        ceilings=parts["ceilings"],
        measurements=parts["measurements"],
        resources=parts["resources"],
        problems=problems,
    )


def is_profile(path: Path) -> bool:
    """Whether a file's first line is of this schema; raises :class:`UserError` if unreadable."""
    try:
        with path.open(encoding="utf-8") as file:
            first = file.readline()
    except (OSError, UnicodeDecodeError) as error:
        raise UserError(f"{path}: cannot be read ({error})") from None
    return SCHEMA in first


def _checked_header(values: dict[str, Any]) -> dict[str, Any]:
    if set(values) != set(_HEADER):
        raise ValueError(f"a run has {', '.join(_HEADER)}")
    if not isinstance(values["created"], str):
        raise ValueError("created is no text")
    for name in _HEADER[1:]:
        if not isinstance(values[name], dict):
            raise ValueError(f"{name} is no object")
    return values


def _checked(line_type: type[Any], values: dict[str, Any]) -> dict[str, Any]:
    hints = get_type_hints(line_type)
    unknown = set(values) - {f.name for f in fields(line_type)}
    if unknown:
        raise ValueError(f"unknown field {min(unknown)}")
    for name, value in values.items():
        if not _fits(value, hints[name]):
            raise ValueError(f"{name} is {value!r}")
    return values


def _fits(value: Any, hint: Any) -> bool:
    """Whether a JSON value is of a field's type; a whole number is also a float."""
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return any(_fits(value, part) for part in get_args(hint))
    if origin is Literal:
        return value in get_args(hint)
    if origin is dict:
        return isinstance(value, dict)
    if hint is float:
        return isinstance(value, int | float) and not isinstance(value, bool)
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return isinstance(value, hint)


def _no_constant(name: str) -> float:
    raise ValueError(f"{name} is no JSON number")
