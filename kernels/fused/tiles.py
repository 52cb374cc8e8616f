"""Tile sizes as reviewed data: one JSON file per architecture in ``tuned/``, first entry first.

A file says how many value columns a program takes, and maps each kernel to entries; an entry serves
problems up to its limits and lists tiles, of which the first is the default and the others are the
next best. ``hmc-fast kernels tune`` measures and writes a file for review, no more.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files

import torch

INTERPRETER = "interpreter"
SHARED_MEMORY_KIB = {
    "sm_80": 163,
    "sm_86": 99,
    "sm_89": 99,
    "sm_90": 227,
    "sm_100": 227,
    "sm_120": 99,
}
"""Shared memory one block can have (CUDA C++ Programming Guide, table of technical limits)."""
SPECIALISED = "specialised_"
"""How the names of warp-specialised kernels begin."""
TILE_FILE = {"sm_89": "sm_86"}
"""Architectures that share another's tiles."""


@dataclass(frozen=True)
class Tile:
    """Block sizes by name (``BLOCK_M``, …), warps and software-pipelining stages of one kernel.

    ``max_registers`` of a thread, where given, may be used in full. Without it the assembler aims
    at a number that lets more blocks share a multiprocessor, and spills a few bytes to reach it.
    """

    blocks: Mapping[str, int]
    num_warps: int
    num_stages: int
    max_registers: int | None = None

    def __hash__(self) -> int:
        sizes = sorted(self.blocks.items())
        return hash((*sizes, self.num_warps, self.num_stages, self.max_registers))


@dataclass(frozen=True)
class TileEntry:
    """Tiles for problems up to these limits; ``max_queries`` None means any number."""

    bits: int
    max_d_qk: int
    max_d_v: int
    max_queries: int | None
    tiles: tuple[Tile, ...]

    def serves(self, bits: int, d_qk: int, d_v: int, queries: int) -> bool:
        return (
            self.bits == bits
            and d_qk <= self.max_d_qk
            and d_v <= self.max_d_v
            and (self.max_queries is None or queries <= self.max_queries)
        )


@dataclass(frozen=True)
class ValueColumns:
    """How wide heads are cut, by the registers that accumulators may take.

    ``chunk``: value columns of one source that one program takes; a wider head takes several
    programs. ``accumulated``: columns of all sources that one forward program accumulates.
    """

    chunk: int
    accumulated: int


@dataclass(frozen=True)
class TileTable:
    """All tiles of one architecture; ``value_columns`` by the bits of a value."""

    architecture: str
    value_columns: Mapping[int, ValueColumns]
    entries: Mapping[str, Sequence[TileEntry]]

    def choose(self, kernel: str, bits: int, d_qk: int, d_v: int, queries: int) -> Tile:
        """The default tile of the first entry that serves the problem.

        ``d_v`` counts the value columns that one program accumulates. Raises ``LookupError`` where
        no entry serves it.
        """
        tile = self.find(kernel, bits, d_qk, d_v, queries)
        if tile is not None:
            return tile
        raise LookupError(
            f"{self.architecture} has no tile of {kernel} for {bits}-bit values, head dim {d_qk} "
            f"of q and k and {d_v} value columns"
        )

    def instead(self, kernel: str, entries: Sequence[TileEntry]) -> "TileTable":
        """The table with other ``entries`` of ``kernel``, and nothing that goes before it.

        Specialised kernels take the problems that they can before the pointer kernels do.
        """
        others = {n: e for n, e in self.entries.items() if not n.startswith(SPECIALISED)}
        return replace(self, entries={**others, kernel: entries})

    def find(self, kernel: str, bits: int, d_qk: int, d_v: int, queries: int) -> Tile | None:
        """As :meth:`choose`, None where no entry serves the problem or the kernel has none."""
        entries = self.entries.get(kernel, ())
        serving = (entry for entry in entries if entry.serves(bits, d_qk, d_v, queries))
        return next((entry.tiles[0] for entry in serving), None)


_tiles_in_use: ContextVar[TileTable | None] = ContextVar("tiles_in_use", default=None)


@contextmanager
def use_tiles(table: TileTable) -> Iterator[None]:
    """Run the kernels with other tiles than the shipped ones inside the block: for tuning."""
    token = _tiles_in_use.set(table)
    try:
        yield
    finally:
        _tiles_in_use.reset(token)


def tiles_for(device: torch.device) -> TileTable:
    """The tiles of :func:`use_tiles`, or those shipped for ``device``."""
    return _tiles_in_use.get() or load_tiles(architecture_of(device))


@cache
def load_tiles(architecture: str) -> TileTable:
    """The reviewed table of an architecture, such as ``"sm_90"`` or ``"interpreter"``."""
    name = TILE_FILE.get(architecture, architecture)
    text = files("hmc_fast.kernels.fused").joinpath("tuned", f"{name}.json").read_text("utf-8")
    return parse_tiles(architecture, json.loads(text))


def parse_tiles(architecture: str, document: Mapping[str, object]) -> TileTable:
    """A table from the content of a tile file."""
    kernels = dict(document)
    columns = kernels.pop("value_columns")
    assert isinstance(columns, list)
    value_columns = {c["bits"]: ValueColumns(c["chunk"], c["accumulated"]) for c in columns}
    entries: dict[str, list[TileEntry]] = {}
    for kernel, values in kernels.items():
        assert isinstance(values, list)
        entries[kernel] = [_parse_entry(entry) for entry in values]
    return TileTable(architecture, value_columns, entries)


@cache
def architecture_of(device: torch.device) -> str:
    """The architecture whose tiles fit ``device``; see :func:`fitting_architecture`."""
    if device.type != "cuda":
        return INTERPRETER
    major, minor = torch.cuda.get_device_capability(device)
    return fitting_architecture(f"sm_{major}{minor}")


def fitting_architecture(architecture: str) -> str:
    """The architecture whose tiles fit another: a newer minor version takes the last known one.

    Unknown major versions get the tiles with the smallest shared memory, which fit everywhere.
    """
    major, minor = divmod(int(architecture.removeprefix("sm_")), 10)
    known = [int(name.removeprefix("sm_")) for name in SHARED_MEMORY_KIB]
    fitting = [c for c in known if c // 10 == major and c % 10 <= minor]
    return f"sm_{max(fitting)}" if fitting else "sm_86"


def _parse_entry(entry: Mapping[str, object]) -> TileEntry:
    fields = dict(entry)
    tiles = fields.pop("tiles")
    assert isinstance(tiles, list)
    return TileEntry(
        bits=_whole(fields.pop("bits")),
        max_d_qk=_whole(fields.pop("max_d_qk")),
        max_d_v=_whole(fields.pop("max_d_v")),
        max_queries=_whole(fields.pop("max_queries")) if "max_queries" in fields else None,
        tiles=tuple(
            Tile(
                {name: size for name, size in tile.items() if name.startswith("BLOCK_")},
                tile["num_warps"],
                tile["num_stages"],
                tile.get("max_registers"),
            )
            for tile in tiles
        ),
    )


def _whole(value: object) -> int:
    assert isinstance(value, int)
    return value
