"""The Dockerfile names files and extras that exist; no Docker engine is needed."""

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
DOCKERFILE = (ROOT / "Dockerfile").read_text(encoding="utf-8")


def test_everything_that_the_wheel_needs_is_copied_and_nothing_is_ignored() -> None:
    copied = {
        word for line in re.findall(r"(?m)^COPY (.*)$", DOCKERFILE) for word in line.split()[:-1]
    }
    assert all((ROOT / path).exists() for path in copied)
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    folders = project["tool"]["setuptools"]["package-dir"].values()
    assert {folder.split("/")[0] for folder in folders} <= copied
    assert {project["project"]["readme"], *project["project"]["license-files"]} <= copied
    kept = {
        line[1:] for line in (ROOT / ".dockerignore").read_text().splitlines() if line[0] == "!"
    }
    assert kept == copied


def test_its_extras_exist() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    named = [e for found in re.findall(r'"\.\[([\w,-]+)\]"', DOCKERFILE) for e in found.split(",")]
    assert named
    assert set(named) <= set(project["project"]["optional-dependencies"])
