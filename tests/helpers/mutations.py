"""Strategies of damage: bytes, text and JSON that were right once."""

import copy
import json
from collections.abc import Sequence
from typing import Any

from hypothesis import strategies as st

BOUNDARIES = [
    b"\x00",
    b"\xff",
    b"\x7f\xff\xff\xff",
    b"\xff\xff\xff\xff",
    b"\x00\x00\x00\x80",
    b"\n",
]
ODD_TEXT = [
    "",
    "NaN",
    "-1",
    "1e999",
    "9" * 400,
    "../../x",
    "\x1b[2J",
    "\u00b2",
    "mdb000",
    '"',
    ",,",
]
ODD_JSON: list[Any] = [
    None, True, -1, 0, 2**70, 0.5, float("inf"), float("nan"), "", "x", "../../x", "9" * 5000,
    [], {}, [[]], {"x": []}, [None], "\ud800", "\x1b[2J",
]  # fmt: skip


@st.composite
def damaged_bytes(draw: st.DrawFn, seeds: Sequence[bytes]) -> bytes:
    """One of ``seeds`` with up to four bytes or slices changed, cut, doubled or moved."""
    content = draw(st.sampled_from(seeds))
    for _ in range(draw(st.integers(0, 4))):
        # The first part of a file holds what decides about the rest.
        end = min(len(content), 400) if draw(st.booleans()) else len(content)
        start = draw(st.integers(0, max(0, end - 1)))
        length = draw(st.sampled_from((1, 1, 2, 4, 16, 300)))
        before, part, after = (
            content[:start], content[start : start + length], content[start + length :],
        )  # fmt: skip
        kind = draw(st.sampled_from(("flip", "set", "insert", "delete", "double", "zero", "cut")))
        if kind == "flip" and part:
            part = bytes([part[0] ^ 1 << draw(st.integers(0, 7))]) + part[1:]
        elif kind in ("set", "insert"):
            value = draw(st.sampled_from(BOUNDARIES) | st.binary(min_size=1, max_size=4))
            part = value if kind == "set" else value + part
        elif kind == "delete":
            part = b""
        elif kind == "double":
            part = part * draw(st.sampled_from((2, 50)))
        elif kind == "zero":
            part = bytes(len(part))
        elif kind == "cut":
            part = after = b""
        content = before + part + after
    return content


@st.composite
def damaged_text(draw: st.DrawFn, seeds: Sequence[bytes], separators: str) -> bytes:
    """A table with cells replaced, moved, doubled or left out; or with damaged bytes."""
    if draw(st.booleans()):
        return draw(damaged_bytes(seeds))
    content = draw(st.sampled_from(seeds)).decode("latin-1")
    lines = content.split("\n")
    for _ in range(draw(st.integers(1, 4))):
        row = draw(st.integers(0, len(lines) - 1))
        separator = draw(st.sampled_from(separators))
        cells = lines[row].split(separator)
        column = draw(st.integers(0, len(cells) - 1))
        kind = draw(st.sampled_from(("odd", "copy", "delete", "insert", "line")))
        if kind == "odd":
            cells[column] = draw(st.sampled_from(ODD_TEXT))
        elif kind == "copy":
            cells[column] = draw(st.sampled_from(cells))
        elif kind == "delete":
            del cells[column]
        elif kind == "insert":
            cells.insert(column, draw(st.sampled_from(ODD_TEXT)))
        lines[row] = separator.join(cells)
        if kind == "line":
            lines.insert(draw(st.integers(0, len(lines))), lines[row])
    return "\n".join(lines).encode("utf-8", "surrogateescape")


@st.composite
def damaged_json(draw: st.DrawFn, seeds: Sequence[Any]) -> bytes:
    """JSON with values replaced, keys lost or added; or with damaged bytes; or nested deeply."""
    kind = draw(st.sampled_from(("values", "values", "values", "bytes", "nested")))
    if kind == "bytes":
        return draw(damaged_bytes([json.dumps(seed).encode() for seed in seeds]))
    if kind == "nested":
        depth = draw(st.sampled_from((10, 900, 100_000)))
        return b"[" * depth + b"]" * draw(st.sampled_from((0, depth)))
    root = {"root": copy.deepcopy(draw(st.sampled_from(seeds)))}
    for _ in range(draw(st.integers(1, 3))):
        places = list(_places(root))
        parent, key = draw(st.sampled_from(places))
        if draw(st.booleans()) and parent is not root:
            del parent[key]
        else:
            parent[key] = copy.deepcopy(draw(st.sampled_from(ODD_JSON)))
    return json.dumps(root["root"]).encode()


def _places(parent: Any) -> list[tuple[Any, Any]]:
    keys = list(parent) if isinstance(parent, dict) else list(range(len(parent)))
    places = [(parent, key) for key in keys]
    for key in keys:
        if isinstance(parent[key], dict | list):
            places += _places(parent[key])
    return places
