"""Optional packages: what is missing, and how to get it."""

from importlib import import_module
from types import ModuleType

from hmc_fast.errors import UserError


class CannotRunHereError(UserError):
    """Nothing is wrong with what was asked for, but this machine or installation cannot run it."""


def need(*modules: str, extra: str) -> list[ModuleType]:
    """Import ``modules``; raises :class:`CannotRunHereError` naming the extra they come with."""
    imported = []
    for name in modules:
        try:
            imported.append(import_module(name))
        except ImportError as error:
            raise CannotRunHereError(
                f"{name} cannot be imported ({error}); pip install 'hmc-fast[{extra}]'"
            ) from None
    return imported
