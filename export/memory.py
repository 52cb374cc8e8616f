"""What an engine needs of a GPU's memory: guessed before the build, read from its log after it."""

import math

import torch
from torch.export import ExportedProgram
from torch.fx import Node

from hmc_fast.data import Preprocessing
from hmc_fast.errors import UserError
from hmc_fast.export.sidecar import EngineInfo, Profile

GIB = 2**30
USABLE_SHARE = 0.9
"""Of a GPU's memory; the rest is CUDA's and the display's."""
DEFAULT_GPU_GIB = 8.0
"""A small GPU, for the profile of an engine whose GPU is not said."""
PIXEL_BYTES = {2: 320, 4: 640}
"""Bytes of activations for a pixel of the image, by bytes of the dtype: more than any model of the
registry was found to need by TensorRT's own log."""
LARGEST_BATCH = 64
USUAL_BATCH = 8


def fitting(image: Preprocessing, dtype: torch.dtype, gpu_memory_gib: float) -> Profile:
    """Batch sizes whose activations are likely to fit a GPU.

    Args:
        image: how large it is.
        dtype: of the graph.
        gpu_memory_gib: all of the GPU's memory.

    Raises:
        UserError: not even one image fits.
    """
    an_image = PIXEL_BYTES[dtype.itemsize] * image.height * image.width
    largest = int(USABLE_SHARE * gpu_memory_gib * GIB // an_image)
    if largest < 1:
        raise UserError(
            f"one image of {_size(image)} needs about {an_image / GIB:.2f} GiB of activations, "
            f"more than a GPU of {gpu_memory_gib:g} GiB has; use a smaller --size"
        )
    largest = min(LARGEST_BATCH, 2 ** (largest.bit_length() - 1))
    return Profile(1, min(USUAL_BATCH, largest), largest)


def check_gpu_memory(gib: float | None) -> None:
    """Raises :class:`UserError` for what is no amount of memory."""
    if gib is not None and not (math.isfinite(gib) and gib > 0):
        raise UserError(f"--gpu-memory {gib:g}: give the GPU's memory in GiB, for example 8")


def check_may_fit(
    program: ExportedProgram,
    dtype: torch.dtype,
    image: Preprocessing,
    profile: Profile,
    gpu_memory_gib: float,
) -> None:
    """Raises :class:`UserError` where no build of ``program`` can fit a GPU.

    A convolution's input and output have to be there together, which bounds the activations from
    below; whether what this lets through does fit is known after the build, see :func:`check_fits`.
    """
    usable = USABLE_SHARE * gpu_memory_gib * GIB
    an_image = max(map(_values_of_an_image, program.graph.nodes), default=0) * dtype.itemsize
    if an_image * profile.maximum <= usable:
        return
    fits = int(usable // an_image)
    advice = f"try --batch 1,{min(fits, USUAL_BATCH)},{fits}" if fits else "use a smaller --size"
    raise UserError(
        f"at {_size(image)} and batch {profile.maximum} one layer alone has "
        f"{an_image * profile.maximum / GIB:.2f} GiB of activations, a GPU of {gpu_memory_gib:g} "
        f"GiB leaves {usable / GIB:.2f}; {advice}"
    )


def _values_of_an_image(node: Node) -> int:
    """Of a convolution's input and output; 0 for other nodes."""
    if node.target is not torch.ops.aten.conv2d.default:
        return 0
    source = node.args[0]
    assert isinstance(source, Node)
    return sum(math.prod(map(int, n.meta["val"].shape[1:])) for n in (source, node))


def check_fits(
    engine: EngineInfo,
    engine_bytes: int,
    image: Preprocessing,
    profile: Profile,
    gpu_memory_gib: float,
) -> None:
    """Raises :class:`UserError` where an engine and its activations exceed a GPU's memory.

    The message names the largest batch that would fit. Nothing is known, and nothing raised, of an
    engine whose builder told no activation memory.
    """
    if engine.activation_bytes is None:
        return
    usable = USABLE_SHARE * gpu_memory_gib * GIB
    needed = engine_bytes + engine.activation_bytes
    if needed <= usable:
        return
    an_image = engine.activation_bytes / profile.maximum
    fits = int((usable - engine_bytes) // an_image)
    advice = (
        f"--batch 1,{min(fits, USUAL_BATCH)},{fits} would fit"
        if fits > 0
        else ("not even one image fits; use a smaller --size")
    )
    raise UserError(
        f"the engine needs {needed / GIB:.2f} GiB at {_size(image)} and batch {profile.maximum} "
        f"({engine.activation_bytes / GIB:.2f} of them for activations), a GPU of "
        f"{gpu_memory_gib:g} GiB leaves {usable / GIB:.2f}; {advice}"
    )


def _size(image: Preprocessing) -> str:
    return f"{image.height}x{image.width}"


def not_fused(engine: EngineInfo) -> int:
    """How many attentions the builder did not fuse; 0 where its log does not say."""
    if engine.attentions is None or engine.fused_attentions is None:
        return 0
    return max(0, engine.attentions - engine.fused_attentions)


def describe_build(engine: EngineInfo, profile: Profile) -> list[str]:
    """What the builder's log says of an engine, in lines for a person."""
    lines = []
    if engine.activation_bytes is not None:
        weights = (
            ""
            if engine.weight_bytes is None
            else (f", weights {engine.weight_bytes / GIB:.2f} GiB")
        )
        lines.append(
            f"activations {engine.activation_bytes / GIB:.2f} GiB at batch {profile.maximum}"
            f"{weights}"
        )
    if engine.attentions and engine.fused_attentions is not None:
        fused = engine.attentions - not_fused(engine)
        form = "" if engine.attention is None else f" (form {engine.attention})"
        lines.append(
            f"attention: {fused} of {engine.attentions} run as one fused kernel each{form}"
        )
    elif engine.attentions:
        lines.append("attention: the builder does not say whether it is fused")
    return lines
