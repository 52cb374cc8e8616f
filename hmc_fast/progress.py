"""Progress of long work, told the same way everywhere."""

from collections.abc import Callable

Progress = Callable[[str, int, int], object]
"""Called with what is being done, the units finished since the last call, and the units in all."""


def no_progress(label: str, done: int, total: int) -> None:
    """Tells nobody."""
