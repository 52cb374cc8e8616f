"""Options that take one of some words: the words are those of the tables that they stand for."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import typer

from hmc_fast.bench.cases import PASSES
from hmc_fast.bench.jobs.presets import PRESETS
from hmc_fast.cli import bench, options, predict, study
from hmc_fast.cli.app import application, run
from hmc_fast.cli.choices import one_of
from hmc_fast.data import TASKS
from hmc_fast.devices import PRECISIONS
from hmc_fast.errors import UserError
from hmc_fast.evaluation.metrics import METRIC_NAMES
from hmc_fast.explain import METHODS
from hmc_fast.export.attention import RUNTIME_FORMS
from hmc_fast.export.builders import FLAVOURS
from hmc_fast.export.sidecar import NUMBER_FORMATS
from hmc_fast.kernels import BACKENDS
from hmc_fast.prediction.levels import LEVELS
from hmc_fast.study.lesion_run import LESION_TRUNKS
from hmc_fast.training.config import SCHEDULES
from hmc_fast.training.loggers import LOGGERS


def shown(command: str, option: str) -> str:
    """What the help shows for the value of an option."""
    found: Any = typer.main.get_command(application())
    for word in command.split():
        found = found.commands[word]
    (metavar,) = (p.metavar for p in found.params if option in p.opts)
    return str(metavar)


@pytest.mark.parametrize(
    ("command", "option", "words"),
    [
        ("predict", "--backend", BACKENDS),
        ("predict", "--level", LEVELS),
        ("predict", "--precision", PRECISIONS),
        ("explain", "--method", (*METHODS, "all")),
        ("train", "--task", TASKS),
        ("train", "--schedule", SCHEDULES),
        ("train", "--logger", LOGGERS),
        ("export onnx", "--runtime", RUNTIME_FORMS),
        ("export onnx", "--quantise", NUMBER_FORMATS),
        ("export tensorrt", "--flavour", ("auto", *FLAVOURS)),
        ("bench kernels", "--pass", PASSES),
        ("bench kernels", "--preset", PRESETS),
        ("bench", "--preset", bench.PRESETS),
        ("study report", "--metric", METRIC_NAMES),
        ("study lesions", "--trunk", LESION_TRUNKS),
    ],
)
def test_the_words_are_those_of_the_table(command: str, option: str, words: Any) -> None:
    offered = shown(command, option).strip("[]").split("|")
    assert sorted(offered) == sorted(words)


@pytest.mark.parametrize("command", ["predict", "serve dicom"])
def test_a_device_is_shown_as_what_it_may_be(command: str) -> None:
    assert shown(command, "--device") == "[auto|cpu|cuda|cuda:NUMBER]"


def test_the_words_that_modules_repeat_are_in_the_tables_order() -> None:
    assert options.BACKENDS == BACKENDS
    assert predict.LEVELS == LEVELS
    assert study.METRICS == METRIC_NAMES


def test_capitals_do_not_matter_and_the_nearest_word_is_named() -> None:
    assert one_of("precision", ("fp32", "bf16"), "BF16") == "bf16"
    with pytest.raises(UserError, match="unknown precision 'fb16'.*; did you mean bf16"):
        one_of("precision", ("fp32", "bf16"), "fb16")
    with pytest.raises(UserError, match="choose one of fp32, bf16$"):
        one_of("precision", ("fp32", "bf16"), "xxxxxxx")


def test_every_option_of_words_says_so_before_anything_is_read(fails: Callable[..., str]) -> None:
    assert "did you mean resnet18?" in fails("train", "--model", "resnet-18")
    assert "did you mean wandb?" in fails("cv", "--logger", "wand")
    assert "did you mean int8?" in fails("export", "onnx", "x", "--quantise", "int-8")
    assert "did you mean triton?" in fails("bench", "kernels", "--peer", "tritton")


@pytest.mark.parametrize(
    ("first", "second"), [("--architecture", "--target"), ("--batch", "--batch-sizes")]
)
def test_one_name_for_one_thing_and_old_names_go_on(first: str, second: str) -> None:
    home = {"--architecture": ("kernels", "resources"), "--batch": ("export", "onnx")}[first]
    command: Any = typer.main.get_command(application())
    for word in home:
        command = command.commands[word]
    (names,) = (p.opts for p in command.params if second in p.opts)
    assert names == [second, first]


def test_shells_are_offered_the_words(capsys: pytest.CaptureFixture[str]) -> None:
    command: Any = typer.main.get_command(application())
    (level,) = (p for p in command.commands["predict"].params if p.name == "level")
    context = typer.Context(command.commands["predict"])
    offered = [item.value for item in level.shell_complete(context, "pa")]
    assert "patient" in offered


def test_quiet_and_verbose_before_a_command_or_behind_it(
    checkpoint: Path, phantom_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    film = str(phantom_folder / "mdb001.pgm")
    predict_film = ["predict", film, "--checkpoint", str(checkpoint)]
    assert run(predict_film) == 0
    told = capsys.readouterr()
    assert "predicting" in told.err
    for line in (["--quiet", *predict_film], [*predict_film, "--quiet"]):
        assert run(line) == 0
        assert capsys.readouterr() == (told.out, "")
    missing = ["predict", film, "--checkpoint", "nowhere", "--quiet"]
    assert run(missing) == 1
    assert "hmc-fast: nowhere: no such file" in capsys.readouterr().err


def test_verbose_shows_the_traceback(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("logging.basicConfig", lambda **settings: None)
    for line in (["--verbose", "bench", "report", "x"], ["bench", "report", "x", "--verbose"]):
        assert run(line) == 1
        printed = capsys.readouterr().err
        assert "Traceback" in printed
        assert printed.strip().splitlines()[-1].startswith("hmc-fast: x: cannot be read")


def test_a_word_behind_two_dashes_is_no_option(fails: Callable[..., str]) -> None:
    assert "--quiet: no such file" in fails("predict", "--checkpoint", "none", "--", "--quiet")
