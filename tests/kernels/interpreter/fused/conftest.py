"""The order in which the interpreter runs a grid's programs, for tests to choose."""

import itertools
import random
from collections.abc import Callable

import pytest
from triton.runtime.interpreter import interpreter_builder


@pytest.fixture
def run_in_order(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], Callable[[], int]]:
    """Makes programs run ``shuffled`` or ``backwards`` and counts those that moved."""

    def choose(order: str) -> Callable[[], int]:
        chance = random.Random(0)
        place: dict[tuple[int, ...], tuple[int, ...]] = {}
        moved = 0
        set_dimensions = interpreter_builder.set_grid_dim
        set_index = interpreter_builder.set_grid_idx

        def rearrange(*dimensions: int) -> None:
            nonlocal moved
            set_dimensions(*dimensions)
            programs = list(itertools.product(*map(range, dimensions)))
            others = programs[::-1]
            if order == "shuffled":
                chance.shuffle(others)
            place.clear()
            place.update(zip(programs, others, strict=True))
            moved += sum(a != b for a, b in place.items())

        monkeypatch.setattr(interpreter_builder, "set_grid_dim", rearrange)
        monkeypatch.setattr(interpreter_builder, "set_grid_idx", lambda *i: set_index(*place[i]))
        return lambda: moved

    return choose
