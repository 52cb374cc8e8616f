"""hmc-fast: HMC-Net for mammograms, fast and verifiable.

The names below are imported when they are first used, so that the operators in
``hmc_fast.kernels`` cost no more than PyTorch, and ``hmc-fast --help`` not even that.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from hmc_fast.checkpoint import load_model
    from hmc_fast.errors import UserError
    from hmc_fast.models import MODEL_NAMES, create_model

_HOMES = {
    "MODEL_NAMES": "hmc_fast.models",
    "UserError": "hmc_fast.errors",
    "create_model": "hmc_fast.models",
    "load_model": "hmc_fast.checkpoint",
}

__version__ = version("hmc-fast")

__all__ = ["MODEL_NAMES", "UserError", "__version__", "create_model", "load_model"]


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'hmc_fast' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)


def __dir__() -> list[str]:
    return sorted(__all__)
