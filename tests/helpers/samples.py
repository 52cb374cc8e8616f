"""Tests of which CI runs samples."""

from collections.abc import Collection, Iterable
from typing import Any

import pytest


def sampled(cases: Iterable[Any], chosen: Collection[Any]) -> list[Any]:
    """Parameters of which CI takes those ``chosen``; the others are for test-exhaustive.

    Raises ``ValueError`` where one that is chosen is no case.
    """
    every = list(cases)
    strangers = [case for case in chosen if case not in every]
    if strangers:
        raise ValueError(f"{strangers} are not among the cases")
    return [
        pytest.param(
            *(case if isinstance(case, tuple) else (case,)),
            marks=() if case in chosen else pytest.mark.exhaustive,
        )
        for case in every
    ]
