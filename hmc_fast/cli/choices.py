"""Options that take one of some words: shown as such, completed by shells, checked early."""

from collections.abc import Callable, Sequence
from difflib import get_close_matches
from typing import Any

import typer

from hmc_fast.errors import UserError


def choice(
    what: str, words: Sequence[str], *declarations: str, help: str, metavar: str | None = None
) -> Any:
    """An option of one of ``words``, in capitals or not; ``what`` names it in the error.

    ``metavar`` stands for all the words where they are too many for a line.
    """
    names = declarations or (f"--{what.replace(' ', '-')}",)
    return typer.Option(
        *names,
        help=help,
        metavar=metavar or f"[{'|'.join(words)}]",
        parser=_parser(what, words),
        autocompletion=lambda: list(words),
    )


def one_of(what: str, words: Sequence[str], value: str) -> str:
    """The one of ``words`` that ``value`` is, in capitals or not.

    Raises :class:`UserError`, with the nearest word, where it is none.
    """
    by_lower = {word.lower(): word for word in words}
    known = by_lower.get(value.lower())
    if known is None:
        near = get_close_matches(value.lower(), by_lower, n=1)
        hint = f"; did you mean {by_lower[near[0]]}?" if near else ""
        raise UserError(f"unknown {what} {value!r}; choose one of {', '.join(words)}{hint}")
    return known


def _parser(what: str, words: Sequence[str]) -> Callable[[str], str]:
    def word(value: str) -> str:
        return one_of(what, words, value)

    return word
