"""What is tested is what users install."""

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from checkouts import head

import hmc_fast
import hmc_fast.bench
import hmc_fast.export
import hmc_fast.kernels
from hmc_fast.cli.app import application, run

PACKAGES = (hmc_fast, hmc_fast.kernels, hmc_fast.bench, hmc_fast.export)
ROOT = Path(__file__).parents[1]


@pytest.mark.skipif("PYTHONSAFEPATH" not in os.environ, reason="not a run of the built wheel")
def test_the_wheel_is_tested_not_the_working_tree() -> None:
    wheel = ROOT / "build" / "wheel"
    assert all(Path(package.__file__).is_relative_to(wheel) for package in PACKAGES)


@pytest.mark.skipif("PYTHONSAFEPATH" not in os.environ, reason="needs the editable installation")
@pytest.mark.parametrize("folder", [ROOT, ROOT / "tests", Path("/")], ids=str)
def test_a_checkout_imports_whole_where_it_lies_and_elsewhere(folder: Path) -> None:
    code = "import hmc_fast.bench, hmc_fast.export; from hmc_fast.kernels import attention as a; "
    code += "import inspect; print(inspect.getfile(a))"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTHON")}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    )
    assert Path(done.stdout.strip()) == ROOT / "kernels" / "api.py"


@pytest.mark.systems
@pytest.mark.parametrize("tool", ["pip", "uv"])
def test_the_lines_of_the_page_install_from_git_and_by_uv(tool: str, tmp_path: Path) -> None:
    """Without the dependencies, which would take minutes; the revision comes along."""
    where = ["--no-deps", "--target", str(tmp_path), f"git+file://{ROOT}"]
    if tool == "pip":
        command = [sys.executable, "-m", "pip", "install", *where]
    else:
        uv = shutil.which(
            "uv", path=os.pathsep.join([str(Path(sys.executable).parent), os.defpath])
        )
        if uv is None:
            pytest.skip("uv is not installed")
        command = [uv, "pip", "install", "--python", sys.executable, *where]
    subprocess.run(command, check=True, capture_output=True)
    assert (tmp_path / "hmc_fast" / "revision.txt").read_text().strip() == head(ROOT)
    assert (tmp_path / "hmc_fast" / "kernels" / "fused").is_dir()


def test_templates_and_type_marker_are_packaged() -> None:
    root = Path(hmc_fast.__file__).parent
    assert (root / "py.typed").is_file()
    shared = {path.name for path in (root / "templates").iterdir()}
    assert shared == {"base.html.j2", "style.css.j2", "table.html.j2"}
    assert {
        path.name
        for path in (Path(hmc_fast.bench.__file__).parent / "report" / "templates").iterdir()
    } == {"page.md.j2", "page.html.j2"}


def test_the_reference_works_without_triton() -> None:
    code = "import sys; sys.modules['triton'] = None; import hmc_fast.kernels.reference"
    subprocess.run([sys.executable, "-c", code], check=True)


def command_lines() -> Iterator[list[str]]:
    """Every command that does something, with the groups that it is in."""

    def walk(group: Any, words: list[str]) -> Iterator[list[str]]:
        for name, command in group.commands.items():
            if hasattr(command, "commands"):
                yield from walk(command, [*words, name])
            else:
                yield [*words, name]

    yield from walk(typer.main.get_command(application()), [])


@pytest.mark.parametrize("words", list(command_lines()), ids=" ".join)
def test_help_of_every_command_shows_an_example(
    words: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    assert run([*words, "--help"]) == 0
    shown = " ".join(capsys.readouterr().out.split())
    assert re.search("Examples?: ", shown)
    assert f"hmc-fast {' '.join(words)}" in shown
