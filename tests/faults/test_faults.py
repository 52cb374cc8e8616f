"""What can go wrong around a command that writes, for each of them.

Whatever happens, no half file stands under a final name, the error is one line, and the same
command, once nothing stands in its way, leaves what an undisturbed run does.
"""

import random
import re
import signal
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
from machine import PAGE, Ended, Fault, Machine
from writing_commands import ELSEWHERE, JOBS, Job, Undisturbed, essence, tree

from hmc_fast.cli.app import application

KILLS = 10
"""Of a job, in the exhaustive tests; one in the others."""
TURNS = 3
HOUR_S = 3600.0
Run = Callable[[Job], Undisturbed]


def each_job(turn: int, *, kills: int = 0) -> pytest.MarkDecorator:
    """Each job. CI takes those of the quick ones whose ``turn`` it is, so that each has two faults.

    With ``kills``, so many seeds of each, of which CI takes the first.
    """
    cases = []
    quick = [job for job in JOBS if not job.slow]
    sampled = quick[turn % TURNS :: TURNS]
    for job in JOBS:
        for seed in range(kills or 1):
            by_hand = [] if job in sampled and not seed else [pytest.mark.exhaustive]
            marks = [pytest.mark.systems, *by_hand]
            values = (job, seed) if kills else (job,)
            label = f"{job.name}-{seed}" if kills else job.name
            cases.append(pytest.param(*values, marks=marks, id=label))
    return pytest.mark.parametrize(("job", "seed") if kills else ("job",), cases)


def commands(group: Any, words: tuple[str, ...] = ()) -> Iterator[str]:
    """The names of all commands that do something."""
    for name, command in group.commands.items():
        below = getattr(command, "commands", None)
        if not below or command.invoke_without_command:
            yield " ".join((*words, name))
        if below:
            yield from commands(command, (*words, name))


def test_every_command_is_here() -> None:
    names = set(commands(typer.main.get_command(application())))
    assert names == {job.name for job in JOBS} | set(ELSEWHERE)


def whole(files: dict[str, bytes], expected: dict[str, str] | None = None) -> dict[str, str]:
    """What is under final names; each of these files is whole.

    Of Markdown and LaTeX only a comparison with what is ``expected`` tells.
    """
    final = {name: content for name, content in files.items() if "/." not in f"/{name}"}
    found = {name: essence(name, content) for name, content in final.items()}
    for name in found if expected is not None else ():
        if name.endswith((".md", ".tex")):
            assert found[name] == expected[name], f"{name} is cut"
    return found


@each_job(0)
def test_a_folder_that_cannot_be_written(
    job: Job, computer: Machine, inputs: dict[str, Path]
) -> None:
    computer.new_disk()
    computer.set_disk("ro")
    ended = computer.run(job.words(job.line, computer.disk, inputs))
    assert ended.code == 1, ended.err
    assert str(computer.disk) in ended.line
    assert not tree(computer.seen())


@each_job(1)
def test_a_disk_that_runs_full(
    job: Job, computer: Machine, inputs: dict[str, Path], undisturbed: Run
) -> None:
    """At its first page, and at any other."""
    expected = undisturbed(job)
    words = job.words(job.line, computer.disk, inputs)
    for room in sorted({1, random.Random(job.line).randint(1, expected.pages - 1)}):
        computer.new_disk(PAGE * room)
        ended = computer.run(words)
        assert ended.code == 1, ended.err
        assert ended.line.startswith("hmc-fast: ")
        assert "No space left on device" in ended.line
        left = tree(computer.seen())
        assert whole(left, expected.files).keys() == left.keys(), "something temporary is left"
    computer.set_disk("size=90%")
    again = computer.run(words)
    assert again.code == 0, again.err
    assert whole(tree(computer.seen())) == expected.files


def ends_as_undisturbed(
    machine: Machine, job: Job, words: list[str], expected: Undisturbed, before: Ended
) -> None:
    """Once the command is run again; a job that is done ``once`` may say that it is done."""
    assert before.code in (-signal.SIGKILL, 0), before.err
    whole(tree(machine.seen()), expected.files)
    again = machine.run(words)
    left = whole(tree(machine.seen()))
    if again.code == 1:
        assert job.once, again.err
        assert re.search("holds|exists already|is not empty", again.line)
        left.pop(f"{job.out}/resume.ckpt", None)
    else:
        assert again.code == 0, again.err
    assert left == expected.files


@each_job(2, kills=KILLS)
def test_a_kill_at_any_moment(
    job: Job, seed: int, computer: Machine, inputs: dict[str, Path], undisturbed: Run
) -> None:
    expected = undisturbed(job)
    words = job.words(job.line, computer.disk, inputs)
    rng = random.Random(f"{job.line} {seed}")
    fault = Fault(rng.randrange(expected.steps), rng.choice((0.0, rng.uniform(0, 0.2))))
    computer.new_disk()
    ends_as_undisturbed(computer, job, words, expected, computer.run(words, fault))


@each_job(3)
def test_another_run_in_the_same_place(
    job: Job, computer: Machine, inputs: dict[str, Path], undisturbed: Run
) -> None:
    """Where a folder belongs to its settings, others are refused; else the result is replaced."""
    expected = undisturbed(job)
    computer.new_disk()
    assert computer.run(job.words(job.line, computer.disk, inputs)).code == 0
    ended = computer.run(job.words(job.other, computer.disk, inputs))
    if job.resumes:
        assert ended.code == 1, ended.err
        assert str(computer.disk) in ended.line
        assert whole(tree(computer.seen())) == expected.files
        return
    assert ended.code == 0, ended.err
    replaced = tree(computer.seen())
    computer.new_disk()
    assert computer.run(job.words(job.other, computer.disk, inputs)).code == 0
    assert whole(replaced) == whole(tree(computer.seen()))


@each_job(4)
def test_files_of_others_stay(
    job: Job, computer: Machine, inputs: dict[str, Path], undisturbed: Run
) -> None:
    """A file of another hand under any name that the command writes to."""
    names = sorted(undisturbed(job).files)
    for name in random.Random(job.line).sample(names, k=min(2, len(names))):
        computer.new_disk()
        foreign = computer.seen(name)
        foreign.parent.mkdir(parents=True, exist_ok=True)
        foreign.write_text("mine\n")
        ended = computer.run(job.words(job.line, computer.disk, inputs))
        assert ended.code == 1, (name, ended.err)
        assert str(computer.disk) in ended.line
        assert foreign.read_text() == "mine\n", name


@each_job(5)
def test_a_clock_that_steps_back(
    job: Job, computer: Machine, inputs: dict[str, Path], undisturbed: Run
) -> None:
    """By an hour while the command runs, which a kill follows or not; then it is run again."""
    expected = undisturbed(job)
    words = job.words(job.line, computer.disk, inputs)
    rng = random.Random(f"clock {job.line}")
    computer.new_disk()
    fault = Fault(rng.randrange(expected.steps), kill=rng.random() < 0.5, back_s=HOUR_S)
    ends_as_undisturbed(computer, job, words, expected, computer.run(words, fault))
