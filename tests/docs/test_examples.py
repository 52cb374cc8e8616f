"""What pages show to run does run: Python on kernels, and every tutorial as a whole."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from hmc_fast.cli.app import run

DOCS = Path(__file__).parents[2] / "docs"
TUTORIALS = sorted((DOCS / "tutorials").glob("*.md"))
BLOCK = re.compile(r"^```(\w+)\n(.*?)^```", re.DOTALL | re.MULTILINE)


def execute(page: Path) -> int:
    """Run all blocks of Python and of our commands in order; returns how many there were.

    Python shares one scope, as in a notebook. A command that fails, and a line of a shell that is
    no command of ours, is an ``AssertionError``.
    """
    scope: dict[str, Any] = {}
    done = 0
    for language, text in BLOCK.findall(page.read_text(encoding="utf-8")):
        if language == "python":
            exec(compile(text, page.name, "exec"), scope)  # noqa: S102  # our own page
            done += 1
        elif language == "sh":
            for line in text.replace("\\\n", " ").splitlines():
                program, *arguments = shlex.split(line, comments=True)
                assert program == "hmc-fast", line
                assert run(arguments) == 0, line
                done += 1
    return done


@pytest.mark.systems
@pytest.mark.parametrize("page", TUTORIALS, ids=lambda page: page.stem)
def test_a_tutorial_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert execute(page) >= 4


def test_a_tutorial_that_fails_is_seen(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    page = tmp_path / "page.md"
    page.write_text("```sh\nhmc-fast predict missing.dcm --checkpoint none.safetensors\n```\n")
    with pytest.raises(AssertionError, match=r"missing\.dcm"):
        execute(page)


@pytest.mark.parametrize("name", ["parity.md", "kernels.md"])
def test_python_of_the_kernel_pages_runs(name: str) -> None:
    scope: dict[str, Any] = {}
    blocks = [t for language, t in BLOCK.findall((DOCS / name).read_text()) if language == "python"]
    assert blocks
    for text in blocks:
        exec(compile(text, name, "exec"), scope)  # noqa: S102  # our own page
