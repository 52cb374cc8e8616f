"""Every line of the README's code, in its order, on phantoms, in a folder as the README has it."""

import ast
import re
import shlex
import shutil
from pathlib import Path

import pytest
from safetensors.torch import save_file
from torchvision.models import resnet50

from hmc_fast import create_model
from hmc_fast.checkpoint import CheckpointMetadata, save_checkpoint
from hmc_fast.cli.app import run
from hmc_fast.data import Preprocessing, write_phantoms

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")

NOT_RUN = {
    "make": "sets up an environment and runs the tests themselves; CI runs these lines",
    "git": "needs the network",
    "cd": "goes with git",
    "pip": "changes the environment that runs the tests",
    "python": "makes an environment",
    "uv": "needs the network",
    "docker": "needs Docker's engine",
    "sh": "scripts that need a GPU or hours",
}
"""First words of lines that are not run here, and why."""

SHORTER = {
    "bench": "--preset quick --size 64 --epochs 1 --folds 2 --seconds 0.05 --peer eager",
    "bench kernels": "--peer eager --precision fp32 --pass forward --seconds 0.05",
    "bench model": "--peer eager --precision fp32 --seconds 0.05",
    "cv": "--size 128 --epochs 1 --folds 2 --batch-size 16",
    "train": "--size 128 --epochs 1 --folds 2 --batch-size 16",
    "leakage-probe": "--size 32 --epochs 1 --folds 2 --copies 2",
    "kernels resources": "--target sm_90 --kernel combine_splits",
}
"""Options that go after a line's own where it would take minutes or days: less of the same work."""


def code(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.DOTALL)


def commands() -> list[list[str]]:
    joined = "\n".join(code("sh")).replace("\\\n", " ")
    lines = (shlex.split(line, comments=True) for line in joined.splitlines())
    return [line for line in lines if line]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """What the README takes for granted: films, a checkpoint, a trunk's parameters."""
    write_phantoms(tmp_path / "data" / "mias", patients=18, size=128, seed=1)
    shutil.copytree(tmp_path / "data" / "mias", tmp_path / "archive")
    shutil.copy(tmp_path / "archive" / "mdb001.pgm", tmp_path / "film.pgm")
    model = create_model("hmc_net_resnet18")
    metadata = CheckpointMetadata(
        model.config, "malignant", ("rest", "malignant"), Preprocessing.square(64), {}, {}
    )
    save_checkpoint(tmp_path / "model.safetensors", model, metadata)
    trunk = {k: v for k, v in resnet50().state_dict().items() if not k.startswith("fc.")}
    save_file(trunk, tmp_path / "TRUNK.safetensors")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_every_line_is_run_or_excepted_with_a_reason() -> None:
    programs = {line[0] for line in commands()}
    assert "hmc-fast" in programs
    assert programs <= {"hmc-fast", *NOT_RUN}


@pytest.mark.systems
def test_the_commands_run_in_their_order(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for program, *words in commands():
        if program != "hmc-fast":
            continue
        group = " ".join(words[:2])
        shorter = SHORTER.get(group) or SHORTER.get(words[0], "")
        assert run([*words, *shorter.split()]) == 0, (words, capsys.readouterr())


@pytest.mark.parametrize("snippet", code("python"))
def test_the_snippets_run_and_shapes_are_as_their_comments_say(snippet: str, folder: Path) -> None:
    scope: dict[str, object] = {}
    exec(snippet, scope)  # noqa: S102  # our own page
    shapes = re.findall(r"(?m)^([\w, ]+?) = .*# ((?:\[[\d, ]+\](?:, )?)+)$", snippet)
    for names, said in shapes:
        got = [list(scope[name].shape) for name in names.split(", ")]  # type: ignore[attr-defined]
        assert got == list(ast.literal_eval(f"[{said}]"))
    assert shapes or "attention(" not in snippet
