"""Runs the fused kernels in Triton's interpreter, which must be chosen before they are imported.

``make test`` starts these in a process of their own with ``TRITON_INTERPRET=1``.
"""

from collections.abc import Iterator

import pytest
import torch

from hmc_fast.kernels.capability import interpreting


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if "tests/kernels/interpreter/" in item.path.as_posix():
            item.add_marker(pytest.mark.interpreter)


@pytest.fixture(autouse=True)
def _poison_uninitialised_memory() -> Iterator[None]:
    """Fill what ``torch.empty`` returns with NaN, so that a gap in an output cannot hide."""
    torch.use_deterministic_algorithms(True)
    assert torch.utils.deterministic.fill_uninitialized_memory
    assert torch.empty(3).isnan().all()
    assert interpreting()
    yield
    torch.use_deterministic_algorithms(False)
