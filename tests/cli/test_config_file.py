"""``--config``: one mechanism for all commands, and the options beside each result."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from hmc_fast import UserError
from hmc_fast.cli.app import application, run
from hmc_fast.cli.commands import COMMANDS
from hmc_fast.cli.config_file import Effective

MANY_OPTIONS = 7
"""A command with so many options takes a file of them."""


def walk(group: Any, words: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    for name, command in group.commands.items():
        if getattr(command, "commands", None):
            yield from walk(command, (*words, name))
        yield " ".join((*words, name)), command


EVERY = dict(walk(typer.main.get_command(application())))


def options(command: Any) -> list[Any]:
    return [p for p in command.params if p.param_type_name == "option" and p.name != "help"]


@pytest.mark.parametrize("name", EVERY)
def test_every_command_with_many_options_takes_a_file_and_groups_them(name: str) -> None:
    offered = options(EVERY[name])
    configured = "config" in {option.name for option in offered}
    assert configured or len(offered) < MANY_OPTIONS
    ungrouped = [option.name for option in offered if option.rich_help_panel is None]
    assert not configured or not ungrouped


def test_the_command_line_goes_before_the_file_and_the_result_can_be_made_again(
    phantom_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(
        f"data: {phantom_folder}\nmodel: ResNet18\nsize: 32\nepochs: 9\nbatch_size: 24\n"
        "learning-rate: 3e-4\nfolds: 3\nface-left: true\naugment: false\nwidth: null\n"
    )
    first, second = tmp_path / "first", tmp_path / "second"
    assert run(["train", "--config", str(file), "--epochs", "1", "--out", str(first)]) == 0
    kept = yaml.safe_load((first / "options.yaml").read_text())
    expected = {"epochs": 1, "batch-size": 24, "learning-rate": 3e-4, "face-left": True}
    expected |= {"augment": False, "model": "resnet18", "data": str(phantom_folder)}
    assert {key: kept[key] for key in expected} == expected
    assert run(["train", "--config", str(first / "options.yaml"), "--out", str(second)]) == 0
    assert (second / "predictions.csv").read_bytes() == (first / "predictions.csv").read_bytes()
    again = yaml.safe_load((second / "options.yaml").read_text())
    assert again == {**kept, "out": str(second)}


def test_a_file_beside_a_table_holds_arguments_and_repeated_options(
    checkpoint: Path, phantom_folder: Path, tmp_path: Path
) -> None:
    films = [str(phantom_folder / f"mdb00{n}.pgm") for n in (1, 2)]
    table, again = tmp_path / "scores.csv", tmp_path / "again.csv"
    arguments = ["predict", *films, "--checkpoint", str(checkpoint), "--level", "Patient"]
    assert run([*arguments, "--out", str(table)]) == 0
    beside = tmp_path / "scores.csv.options.yaml"
    kept = yaml.safe_load(beside.read_text())
    assert (kept["files"], kept["checkpoint"]) == (films, [str(checkpoint)])
    assert kept["level"] == "patient"
    assert run(["predict", "--config", str(beside), "--out", str(again)]) == 0
    assert again.read_bytes() == table.read_bytes()


def test_what_cannot_be_used_is_one_line(tmp_path: Path, fails: Callable[..., str]) -> None:
    file = tmp_path / "settings.yaml"

    def line(text: str, *command: str) -> str:
        file.write_text(text)
        return fails(*(command or ("train",)), "--config", file)

    assert "hmc-fast train has no option epoch; did you mean epochs?" in line("epoch: 3")
    assert "has no option zzz" in line("zzz: 3")
    assert "has no option config" in line("config: other.yaml")
    assert "epochs is a list, needs one value" in line("epochs: [1, 2]")
    assert "native is 'maybe', needs to be true or false" in line("native: maybe")
    assert "model is False, needs a plain value" in line("model: off")
    assert "data is {'a': 1}, needs a plain value" in line("data: {a: 1}")
    assert "epochs is given twice" in line("epochs: 1\nseed: 2\nepochs: 3")
    assert "batch_size is given twice, with - and with _" in line("batch-size: 1\nbatch_size: 2")
    assert "needs lines such as" in line("- epochs")
    assert "is no YAML" in line("epochs: [1")
    assert "is no YAML" in line("epochs: !!python/object/apply:os.getcwd []")
    assert "unknown task 'age'" in line(f"task: age\ndata: {tmp_path}\nout: {tmp_path}")
    assert "cannot be read (No such file" in fails("train", "--config", tmp_path / "none.yaml")
    assert "is no YAML (month must be" in line("data: 2026-13-45")
    assert "is no YAML (Exceeds the limit" in line(f"epochs: {'9' * 5000}")
    assert "is too long for a file of options" in line("#" * 2**20)
    nested = "x" + "".join(f", &a{n} [{', '.join(['x' if n == 0 else f'*a{n - 1}'] * 9)}]"
                           for n in range(30))  # fmt: skip
    assert len(line(f"data: [{nested}]")) < 1000, "all of 9^30 values would be shown"
    file.write_bytes(b"\xff\xfe")
    assert "cannot be read (it is no text)" in fails("train", "--config", file)
    file.write_text("seconds: 1")
    assert "belongs behind kernels" in fails("bench", "--config", file, "kernels", "--list")


def test_a_pipe_or_a_device_is_not_waited_for(
    checkpoint: Path, phantom_folder: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    pipe, film = tmp_path / "pipe.csv", phantom_folder / "mdb001.pgm"
    os.mkfifo(pipe)
    for line in (
        ("predict", pipe, "--checkpoint", checkpoint),
        ("predict", film, "--checkpoint", pipe),
        ("predict", film, film, "--checkpoint", checkpoint, "--checkpoint", "/dev/zero"),
        ("evaluate", "--checkpoint", checkpoint, "--data", pipe),
        ("evaluate", "--checkpoint", checkpoint, "--data", phantom_folder, "--out", pipe),
        ("bench", "report", pipe, "--out", tmp_path / "report"),
    ):
        assert "is a pipe or a device" in fails(*line)


def test_a_value_of_the_wrong_kind_is_wrong_usage_as_on_the_command_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "settings.yaml"
    file.write_text(f"data: {tmp_path}\nout: {tmp_path}\nepochs: many\n")
    assert run(["train", "--config", str(file)]) == 2
    assert "--epochs" in capsys.readouterr().err


def test_a_failure_leaves_no_options(phantom_folder: Path, tmp_path: Path) -> None:
    arguments = ["train", "--data", str(phantom_folder), "--model", "resnet18", "--folds", "50"]
    assert run([*arguments, "--out", str(tmp_path / "run")]) == 1
    assert not list(tmp_path.iterdir())


def test_every_command_is_known_to_this_test() -> None:
    assert {name.split()[0] for name in EVERY} == {command.name for command in COMMANDS}


def test_a_file_of_options_that_is_not_ours_is_refused_before_the_work(
    phantom_folder: Path, tmp_path: Path, fails: Callable[..., str]
) -> None:
    out = tmp_path / "out"
    out.mkdir()
    for foreign in (out / "options.yaml", tmp_path / "out.options.yaml"):
        foreign.write_text("mine")
        told = fails("train", "--data", phantom_folder, "--model", "resnet18", "--out", out)
        assert f"{foreign}: no command made it" in told
        assert foreign.read_text() == "mine"
        assert [path.name for path in out.iterdir()] == [foreign.name][: foreign.parent == out]
        foreign.unlink()


def test_a_first_file_that_a_kill_left_half_written_stops_nobody(tmp_path: Path) -> None:
    effective = Effective("hmc-fast study report", {})
    (tmp_path / "figures").mkdir()
    (tmp_path / "figures" / ".roc-0.png.a1b2.tmp").touch()
    effective.keep_in(tmp_path, "report.*", "figures/*")
    (tmp_path / "figures" / "roc-0.png").touch()
    with pytest.raises(UserError, match=r"roc-0\.png: no command made it"):
        effective.keep_in(tmp_path, "report.*", "figures/*")
