"""The error that a person can mend: the command line prints it as one line, without a traceback."""


class UserError(Exception):
    """Bad input or an unfit environment; the message says what, where and what to do."""
