"""What server and client know of a film model: a JSON text in the model's configuration."""

import json
from dataclasses import asdict, dataclass
from typing import Any

from hmc_fast.data import Preprocessing
from hmc_fast.data.limits import larger_than_any_film, max_file_bytes
from hmc_fast.errors import UserError
from hmc_fast.schema import STRICT, parse_json

FILM_MODEL = "hmc_film"
"""The film model's name in a repository, unless another is chosen."""
FILM_INPUT = "film"
"""A film's file, uint8 ``[1, bytes]``: one film a request, which the server batches."""
FILM_OUTPUT = "probabilities"
"""Of the classes, fp32 ``[1, classes]``."""
PARAMETER = "hmc_fast"
FORMAT = 1


@dataclass(frozen=True)
class FilmService:
    """A film model: where its images go, and what its probabilities are of.

    Args:
        model: in the same repository, from normalised images to logits.
        version: of that model.
        images: its input's name.
        logits: its output's name.
        smallest_batch: of images that it takes.
        task: name of the task.
        class_names: of the probabilities.
        preprocessing: from a film to an image.
        allow_raw: also take DICOM images that are for processing.
    """

    model: str
    version: int
    images: str
    logits: str
    smallest_batch: int
    task: str
    class_names: tuple[str, ...]
    preprocessing: Preprocessing
    allow_raw: bool

    __pydantic_config__ = STRICT

    def to_parameter(self) -> str:
        """The text that :meth:`of_config` reads."""
        values = {**asdict(self), "preprocessing": self.preprocessing.to_json()}
        return json.dumps({"format": FORMAT, **values}, allow_nan=False)

    @classmethod
    def of_config(cls, config: dict[str, Any], source: str) -> "FilmService":
        """From a model's configuration, as JSON.

        Raises :class:`UserError`, which names ``source``, where that is no film model's, or one of
        another release.
        """
        text = config.get("parameters", {}).get(PARAMETER, {}).get("string_value")
        if text is None:
            raise UserError(
                f"{source}: is no film model of hmc-fast; name the one that export triton-server "
                "wrote beside it"
            )
        values = parse_json(dict[str, Any], text, source)
        if (release := values.pop("format", None)) != FORMAT:
            raise UserError(
                f"{source}: has format {release}, this release reads {FORMAT}; export it again"
            )
        return parse_json(cls, json.dumps(values), source)


def check_bytes(count: int) -> None:
    """Raises :class:`UserError` for a file that cannot be a film, by its size alone."""
    if not count:
        raise UserError("the film is empty")
    if count > max_file_bytes():
        raise UserError(larger_than_any_film())
