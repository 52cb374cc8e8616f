"""Patients of a training set, remembered without their names."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from hashlib import scrypt, sha256
from typing import Any

from hmc_fast.data.films import Film
from hmc_fast.schema import STRICT

_COST, _BLOCK, _PARALLEL, _KEY_BYTES = 2**10, 8, 1, 16


@dataclass(frozen=True)
class PatientKeys:
    """Whose films a model was trained on, as keys that tell no names.

    A key is scrypt (RFC 7914) of the film's collection and patient with ``salt``, which differs
    between training sets: keys of two checkpoints cannot be matched. Who knows a patient's name
    can ask for it; trying all names of a small collection takes minutes, so this is no encryption.
    """

    salt: str = ""
    keys: tuple[str, ...] = ()

    __pydantic_config__ = STRICT

    @classmethod
    def of(cls, films: Sequence[Film], digests: Iterable[str]) -> "PatientKeys":
        """Keys of the films' patients; ``digests`` of their pixels make the salt."""
        salt = sha256("".join(sorted(digests)).encode()).hexdigest()
        return cls(salt, tuple(sorted({_key(name, salt) for name in map(_name, films)})))

    def to_json(self) -> dict[str, Any]:
        return {"salt": self.salt, "keys": list(self.keys)}

    def hold(self, films: Sequence[Film]) -> list[bool]:
        """Whether the patient of each film is one of them."""
        known = {name: _key(name, self.salt) in self._set for name in set(map(_name, films))}
        return [known[_name(film)] for film in films]

    @cached_property
    def _set(self) -> frozenset[str]:
        return frozenset(self.keys)


def _name(film: Film) -> str:
    return f"{film.collection}\0{film.patient_id}"


def _key(name: str, salt: str) -> str:
    """3 ms a patient: nothing for a training set, years for a guesser of free-form names."""
    return scrypt(
        name.encode(), salt=salt.encode(), n=_COST, r=_BLOCK, p=_PARALLEL, dklen=_KEY_BYTES
    ).hex()
