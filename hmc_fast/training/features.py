"""Features of films on disk: computed once by a frozen trunk, read by every fit.

One safetensors file a film, named by what decides its content: the film's pixels, the trunk's
parameters and the preprocessing. A killed extraction leaves whole files alone and goes on where it
stopped.
"""

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor

from hmc_fast.data import FilmCache
from hmc_fast.data.frame import Frame
from hmc_fast.devices import default_device
from hmc_fast.errors import UserError
from hmc_fast.files import make_folder
from hmc_fast.models import HMCNet, attention_blocks, build_model
from hmc_fast.models.lesion_head import black_level, breast_cells, lesion_features
from hmc_fast.tensor_files import read_safetensors, write_safetensors

FORMAT = 2
METADATA_KEY = "hmc_fast"
"""One entry alone: safetensors writes several in a random order."""
SUFFIX = ".safetensors"
TRUNK_PARTS = ("conv1.", "bn1.", "layer1.", "layer2.", "layer3.")
"""Parameters that C3 and C4 depend on while γ is zero."""
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
    frame: Frame
    digest: str


def cache_features(
    paths: Sequence[Path],
    trunk: HMCNet,
    films: FilmCache,
    folder: Path,
    *,
    limit_gib: float = 8.0,
    on_film: Callable[[int], object] = lambda count: None,
) -> list[Path]:
    """The feature file of every film; those that are missing are computed now, one at a time.

    They are computed on the GPU where there is one.

    Args:
        paths: films.
        trunk: whose attention, if it has any, still has ``γ = 0``, so that C3 and C4 are the
            trunk's own; it is not changed.
        films: where prepared films come from.
        folder: of the cache, shared by any trunks and preprocessings.
        limit_gib: the most that the folder may hold.
        on_film: called with 1 for every film that has become ready.

    Raises:
        UserError: a film cannot be read or shows nothing, or the folder is full.
        ValueError: the trunk's attention has learned something.
    """
    make_folder(folder)
    trunk = plain_trunk(trunk).to(default_device())
    weights = trunk_digest(trunk)
    files: dict[Path, Path] = {}
    for path in dict.fromkeys(paths):
        key = json.dumps(
            [FORMAT, films.digest(path), weights, films.preprocessing.to_json()], sort_keys=True
        )
        name = hashlib.sha256(key.encode()).hexdigest()[:32]
        files[path] = folder / f"{name}{SUFFIX}"
        if not files[path].exists():
            _compute(path, trunk, films, files[path], limit_gib)
        on_film(1)
    return [files[path] for path in paths]


def read_features(file: Path) -> FilmFeatures:
    """Reread one film's features; raises :class:`UserError` where the file is damaged."""
    tensors, metadata = read_safetensors(file)
    try:
        description = json.loads(metadata[METADATA_KEY])
        return FilmFeatures(
            tensors["cells"],
            tensors["breast"].bool(),
            Frame.from_json(description["frame"]),
            description["film"],
        )
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{file}: is no feature file (problem with {error}); delete it, it is computed again"
        ) from None


def plain_trunk(model: HMCNet) -> HMCNet:
    """The ResNet of a model whose attention passes features through, in evaluation mode.

    A copy. Raises ``ValueError`` where a block's γ is not zero.
    """
    if any(block.gamma.any() for block in attention_blocks(model)):
        raise ValueError("the attention has learned something, so features are not the trunk's own")
    config = replace(model.config, hsa_stages=(), msca=False, lesion_head=False)
    trunk = build_model(config)
    assert isinstance(trunk, HMCNet)  # as the model is
    trunk.load_state_dict({name: model.state_dict()[name] for name in trunk.state_dict()})
    trunk.eval()
    return trunk


def trunk_digest(trunk: HMCNet) -> str:
    """SHA-256 of the parameters that C3 and C4 depend on, and of where the trunk strides."""
    digest = hashlib.sha256(str(trunk.layer2[0].conv1.stride).encode())
    for name, tensor in sorted(trunk.state_dict().items()):
        if name.startswith(TRUNK_PARTS):
            digest.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
            digest.update(tensor.detach().cpu().contiguous().numpy().tobytes())
    return digest.hexdigest()


def _compute(path: Path, trunk: HMCNet, films: FilmCache, file: Path, limit_gib: float) -> None:
    """Compute and write one film's features."""
    preprocessing = films.preprocessing
    image = preprocessing.normalise(films.image(path))[None].to(trunk.fc.weight.device)
    black = black_level(preprocessing.mean[0], preprocessing.std[0])
    with torch.inference_mode():
        cells = lesion_features(*trunk.early_stages(image)).half().cpu()[0]
        breast = breast_cells(image, black).cpu()[0, 0]
    if not cells.isfinite().all():
        raise UserError("the trunk's features exceed fp16's range; use other weights")
    tensors = {"cells": cells.contiguous(), "breast": breast.to(torch.uint8).contiguous()}
    folder = file.parent
    held = sum(other.stat().st_size for other in folder.glob(f"*{SUFFIX}"))
    size = sum(tensor.nbytes for tensor in tensors.values())
    if held + size > limit_gib * GIB:
        raise UserError(
            f"{folder}: the features of one more film would exceed the limit of {limit_gib:g} GiB; "
            "raise the limit, or delete the folder, whose files can be computed again"
        )
    description = {"film": films.digest(path), "frame": films.frame(path).to_json()}
    metadata = {METADATA_KEY: json.dumps(description)}
    write_safetensors(file, tensors, metadata)
