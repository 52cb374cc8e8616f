"""Errors of users: one line that a terminal can print, whatever the names in it."""

import os
from pathlib import Path

from hmc_fast import UserError


def test_control_characters_and_names_outside_of_unicode_are_escaped() -> None:
    name = Path(os.fsdecode(b"a\x1b[2J\n\xff.pgm"))
    assert str(UserError(f"{name}: no such file")) == r"a\x1b[2J \udcff.pgm: no such file"
    assert str(UserError("Röntgen – 1×1: fine")) == "Röntgen – 1×1: fine"


def test_a_long_message_keeps_its_ends() -> None:
    line = str(UserError("start " + "x" * 10_000 + " end"))
    assert line.startswith("start xxx")
    assert line.endswith("xxx end")
    assert len(line) < 1000
