"""Write the list of all committed records and their commands into a page.

list_records.py PAGE
"""

import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from hmc_fast.files import write_text
from hmc_fast.reporting import between_marks

ROOT = Path(__file__).parents[1]
BEGIN, END = "<!-- records:begin -->", "<!-- records:end -->"


def environments(value: Any) -> Iterator[dict[str, Any]]:
    """Every description of a run's machine in a record, however deep."""
    if isinstance(value, dict):
        if "packages" in value:
            yield value
        for inner in value.values():
            yield from environments(inner)
    elif isinstance(value, list):
        for inner in value:
            yield from environments(inner)


def row(path: Path) -> list[str]:
    """A record's link, the commands that made it, and on what."""
    lines = path.read_text(encoding="utf-8")
    if path.suffix == ".jsonl":
        content: Any = [json.loads(line) for line in lines.splitlines()]
    else:
        content = json.loads(lines)
    made = list(environments(content))
    commands = dict.fromkeys(e["command"] for e in made if "command" in e)
    if isinstance(content, dict):
        commands |= dict.fromkeys(content.get("commands", []))
    devices = dict.fromkeys(environment["gpu"] or environment["cpu"] for environment in made)
    revisions = dict.fromkeys(environment.get("git_revision") or "none" for environment in made)
    name = path.relative_to(ROOT / "bench" / "results").as_posix()
    return [
        f"[{name}](../bench/results/{name})",
        "<br>".join(f"`{command}`" for command in commands),
        ", ".join(devices),
        ", ".join(revisions),
    ]


def table() -> str:
    """All records as a Markdown table."""
    paths = sorted((ROOT / "bench" / "results").rglob("*.json*"))
    lines = [["record", "made by", "on", "revision"], ["---"] * 4, *map(row, paths)]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def updated(text: str) -> str:
    """``text`` with the list between its marks made again."""
    return between_marks(text, BEGIN, END, table())


if __name__ == "__main__":
    page = Path(sys.argv[1])
    write_text(page, updated(page.read_text(encoding="utf-8")))
