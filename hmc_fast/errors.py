"""The error that a person can mend: the command line prints it as one line, without a traceback."""

LONGEST = 900


class UserError(Exception):
    """Bad input or an unfit environment; the message says what, where and what to do.

    It is one line that a terminal can print: control characters, which names and damaged files may
    hold, are escaped, and the middle of what is longer than :data:`LONGEST` is left out.
    """

    def __init__(self, message: str) -> None:
        line = "".join(c if c.isprintable() else _escaped(c) for c in message)
        if len(line) > LONGEST:
            line = f"{line[: LONGEST // 2]} … {line[-LONGEST // 2 :]}"
        super().__init__(line)


def _escaped(character: str) -> str:
    return " " if character.isspace() else character.encode("unicode_escape").decode("ascii")
