"""A film from memory, by the same readers and limits as one from a file."""

import os
from pathlib import Path

from torch import Tensor

from hmc_fast.data import film_image
from hmc_fast.errors import UserError
from hmc_fast.serving.service import FilmService, check_bytes


def image_of_bytes(content: memoryview, service: FilmService) -> Tensor:
    """A film's file, as it arrived, to the model's image ``[3, H, W]``, fp32.

    It is read from memory that has a file's name (Linux), so that no film touches a disk. Size,
    pixels and the decoder's own process are bounded as in :mod:`hmc_fast.data`.

    Raises :class:`UserError`, without a path, for what is no film that the model takes.
    """
    check_bytes(content.nbytes)
    descriptor = os.memfd_create("film")
    try:
        with os.fdopen(descriptor, "wb", closefd=False) as file:
            file.write(content)
        path = Path(f"/proc/self/fd/{descriptor}")
        try:
            image = film_image(path, service.preprocessing, allow_raw=service.allow_raw).image
        except UserError as error:
            raise UserError(str(error).removeprefix(f"{path}: ")) from None
        return service.preprocessing.normalise(image)
    finally:
        os.close(descriptor)
