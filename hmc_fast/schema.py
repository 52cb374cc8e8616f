"""Files that come from elsewhere, checked against the dataclass that they describe.

Fields have the types that the class says, without conversion: ``"no"`` is no bool, ``1.5`` no int.
"""

from collections.abc import Hashable
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

from pydantic import ConfigDict, TypeAdapter, ValidationError

from hmc_fast.errors import UserError
from hmc_fast.files import strict_json

STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
"""``__pydantic_config__`` of dataclasses that are read from files."""
PART = ConfigDict(strict=True, extra="ignore", allow_inf_nan=False)
"""The same for dataclasses that describe a part of what a file holds."""
Kind = TypeVar("Kind")


def read_json_as(kind: type[Kind], path: Path) -> Kind:
    """A JSON file as ``kind``; raises :class:`UserError` as :func:`parse_json`, or unreadable."""
    try:
        text = path.read_bytes()
    except OSError as error:
        raise UserError(f"{path}: cannot be read as JSON ({error.strerror})") from None
    return parse_json(kind, text, str(path))


def parse_json(kind: type[Kind], text: str | bytes, source: str) -> Kind:
    """A JSON document as ``kind``, a dataclass or any other type that pydantic knows.

    It has to be :func:`~hmc_fast.files.strict_json`.

    Raises :class:`UserError` with ``source``, the field and what is wrong with it.
    """
    try:
        strict_json(text)
        parsed: Kind = _adapter(cast("Hashable", kind)).validate_json(text, strict=True)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        reason = first["msg"].removeprefix("Value error, ")
        raise UserError(
            f"{source}: is damaged or of another release ({place + ': ' if place else ''}{reason})"
        ) from None
    except RecursionError:
        raise UserError(f"{source}: cannot be read as JSON (it is nested too deeply)") from None
    except ValueError as error:
        raise UserError(f"{source}: cannot be read as JSON ({error})") from None
    return parsed


@cache
def _adapter(kind: Any) -> TypeAdapter[Any]:
    return TypeAdapter(kind)
