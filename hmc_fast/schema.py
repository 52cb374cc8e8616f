"""Files that come from elsewhere, checked against the dataclass that they describe.

Fields have the types that the class says, without conversion: ``"no"`` is no bool, ``1.5`` no int.
"""

from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from hmc_fast.errors import UserError

STRICT = ConfigDict(strict=True, extra="forbid", allow_inf_nan=False)
"""``__pydantic_config__`` of dataclasses that are read from files."""
Kind = TypeVar("Kind")


def parse_json(kind: type[Kind], text: str | bytes, source: str) -> Kind:
    """A JSON document as ``kind``, a dataclass or any other type that pydantic knows.

    Raises :class:`UserError` with ``source``, the field and what is wrong with it.
    """
    adapter: TypeAdapter[Any] = TypeAdapter(kind)
    try:
        parsed: Kind = adapter.validate_json(text, strict=True)
    except UserError as error:
        raise UserError(f"{source}: {error}") from None
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        place = ".".join(map(str, first["loc"]))
        reason = first["msg"].removeprefix("Value error, ")
        raise UserError(
            f"{source}: is damaged or of another release ({place + ': ' if place else ''}{reason})"
        ) from None
    return parsed
