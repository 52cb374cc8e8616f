"""Features of films on disk: computed once by a frozen trunk, read by every fit.

One safetensors file a film, named by what decides its content: the film's pixels, the trunk's
parameters and the preprocessing. A killed extraction leaves whole files alone and goes on where it
stopped.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import Tensor

from hmc_fast.data.native import NativeFrame, NativeImage, NativePreprocessing
from hmc_fast.data.pixels import pixel_digest, read_pixels
from hmc_fast.errors import UserError
from hmc_fast.files import make_folder, write_atomically
from hmc_fast.models import HMCNet
from hmc_fast.models.lesion_head import black_level, breast_cells, lesion_features
from hmc_fast.models.weights import read_safetensors

FORMAT = 1
METADATA_KEY = "hmc_fast"
"""One entry alone: safetensors writes several in a random order."""
SUFFIX = ".safetensors"
TRUNK_PARTS = ("conv1.", "bn1.", "layer1.", "layer2.", "layer3.", "hsa.C2.", "hsa.C3.", "hsa.C4.")
"""Parameters that C3 and C4 depend on."""
GIB = 2**30


@dataclass(frozen=True)
class FilmFeatures:
    """What a lesion head sees of one film.

    ``cells`` is ``[C, h, w]`` in fp16 (C3's 2×2 average and maximum, C4), ``breast`` is ``[h, w]``,
    bool. ``digest`` is that of the film, see
    :func:`hmc_fast.data.pixels.pixel_digest`.
    """

    cells: Tensor
    breast: Tensor
    frame: NativeFrame
    digest: str


@dataclass(frozen=True)
class _Film:
    """A film on its way through the trunk."""

    image: NativeImage
    digest: str
    file: Path


def cache_features(
    paths: Sequence[Path],
    trunk: HMCNet,
    preprocessing: NativePreprocessing,
    folder: Path,
    *,
    limit_gib: float = 8.0,
    batch_size: int = 1,
    device: torch.device | str = "cpu",
    on_film: Callable[[int], object] = lambda films: None,
) -> list[Path]:
    """The feature file of every film, those that are missing computed now.

    Films of equal size go through the trunk together. The batches depend on ``paths`` alone, not on
    which files are there, so that a run that was killed ends with the files of one that was not.

    Args:
        paths: films.
        trunk: in evaluation mode afterwards.
        preprocessing: what the films go through.
        folder: of the cache, shared by any trunks and preprocessings.
        limit_gib: the most that the folder may hold.
        batch_size: films of equal size that are computed together.
        device: where the trunk runs.
        on_film: called with the number of films that have become ready.

    Raises:
        UserError: a film cannot be read or shows nothing, or the folder is full.
    """
    make_folder(folder)
    trunk.eval().to(device)
    weights = trunk_digest(trunk)
    files: dict[Path, Path] = {}
    by_size: dict[tuple[int, ...], list[_Film]] = {}
    for path in dict.fromkeys(paths):
        film = _read(path, preprocessing, weights, folder)
        files[path] = film.file
        waiting = by_size.setdefault(tuple(film.image.image.shape), [])
        waiting.append(film)
        if len(waiting) == batch_size:
            _finish(by_size.pop(tuple(film.image.image.shape)), trunk, preprocessing, limit_gib)
            on_film(batch_size)
    for waiting in by_size.values():
        _finish(waiting, trunk, preprocessing, limit_gib)
        on_film(len(waiting))
    return [files[path] for path in paths]


def read_features(file: Path) -> FilmFeatures:
    """Reread one film's features; raises :class:`UserError` where the file is damaged."""
    tensors, metadata = read_safetensors(file)
    try:
        description = json.loads(metadata[METADATA_KEY])
        return FilmFeatures(
            tensors["cells"],
            tensors["breast"].bool(),
            NativeFrame(**description["frame"]),
            description["film"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{file}: is no feature file (problem with {error}); delete it, it is computed again"
        ) from None


def trunk_digest(trunk: HMCNet) -> str:
    """SHA-256 of the parameters that C3 and C4 depend on, and of where the trunk strides."""
    digest = hashlib.sha256(str(trunk.layer2[0].conv1.stride).encode())
    for name, tensor in sorted(trunk.state_dict().items()):
        if name.startswith(TRUNK_PARTS):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _read(path: Path, preprocessing: NativePreprocessing, weights: str, folder: Path) -> _Film:
    pixels = read_pixels(path)
    try:
        image = preprocessing(pixels)
    except UserError as error:
        raise UserError(f"{path}: {error}") from None
    digest = pixel_digest(pixels)
    key = json.dumps([FORMAT, digest, weights, preprocessing.to_json()], sort_keys=True)
    name = hashlib.sha256(key.encode()).hexdigest()[:32]
    return _Film(image, digest, folder / f"{name}{SUFFIX}")


def _finish(
    films: list[_Film], trunk: HMCNet, preprocessing: NativePreprocessing, limit_gib: float
) -> None:
    """Compute and write the files of films of one size, unless all are there."""
    if all(film.file.exists() for film in films):
        return
    images = torch.stack([preprocessing.normalise(film.image.image) for film in films])
    images = images.to(next(trunk.parameters()).device)
    with torch.inference_mode():
        cells = lesion_features(*trunk.early_stages(images)).half().cpu()
        breast = breast_cells(images, black_level(preprocessing.mean[0], preprocessing.std[0]))
    if not cells.isfinite().all():
        raise UserError("the trunk's features exceed fp16's range; use other weights")
    for film, film_cells, film_breast in zip(films, cells, breast.cpu(), strict=True):
        if not film.file.exists():
            tensors = {
                "cells": film_cells.contiguous(),
                "breast": film_breast[0].to(torch.uint8).contiguous(),
            }
            _write(film, tensors, limit_gib)


def _write(film: _Film, tensors: dict[str, Tensor], limit_gib: float) -> None:
    folder = film.file.parent
    held = sum(file.stat().st_size for file in folder.glob(f"*{SUFFIX}"))
    size = sum(tensor.nbytes for tensor in tensors.values())
    if held + size > limit_gib * GIB:
        raise UserError(
            f"{folder}: the features of one more film would exceed the limit of {limit_gib:g} GiB; "
            "raise the limit, or delete the folder, whose files can be computed again"
        )
    description = {"film": film.digest, "frame": film.image.frame.to_json()}
    metadata = {METADATA_KEY: json.dumps(description)}
    write_atomically(film.file, lambda temporary: save_file(tensors, temporary, metadata=metadata))
