"""The greyscale chain of DICOM: PS3.4 N.2 and PS3.3 C.11, C.7.5.1.1.2 and C.7.6.3.

Stored values → Modality LUT or rescale → VOI LUT or window (LINEAR, LINEAR_EXACT, SIGMOID; the
first of several) → MONOCHROME1 inverted → scaled to 0…1 by the range that the last step can give,
never by the picture's own extremes. Padding is background.
"""

import math

import numpy as np
from numpy.typing import NDArray
from pydicom.dataset import Dataset
from pydicom.multival import MultiValue

PLAUSIBLE = 1e9
"""No window, slope or intercept of a film is larger: stored values have at most 16 bits."""
MAX_EXPONENT = 700.0
"""Of a sigmoid: beyond it the result is 0 to fp64."""
LUT_BITS = (8, *range(10, 17))
"""Bits of an entry of a lookup table (PS3.3 C.11.1.1.1 and C.8.11.3.1.5)."""


def greyscale(stored: NDArray[np.integer], dataset: Dataset) -> NDArray[np.float32]:
    """Stored values to presentation values in 0…1, by the attributes of ``dataset``.

    The grey of every value that occurs is computed once and looked up for each pixel.

    Raises ``ValueError`` for a transform that is not finite or has no range.
    """
    least = min(0, int(stored.min()))
    greys = _presented(np.arange(least, int(stored.max()) + 1, dtype=np.int32), dataset)
    padding = _padding(dataset)
    if padding is not None:
        greys[max(0, padding[0] - least) : max(0, padding[1] + 1 - least)] = 0
    return greys[stored if least == 0 else stored.astype(np.int32) - least]


def _presented(stored: NDArray[np.int32], dataset: Dataset) -> NDArray[np.float32]:
    lowest, highest = _modality_range(dataset)
    values = _modality_values(stored, dataset)
    voi_lut = _voi_lut(dataset)
    if voi_lut is not None:
        values = _looked_up(values, voi_lut, dataset)
        lowest, highest = 0.0, _lut_maximum(voi_lut)
    elif dataset.get("WindowCenter") is not None and dataset.get("WindowWidth") is not None:
        values = _windowed(values, dataset, lowest, highest)
    if not highest > lowest:
        raise ValueError("modality or VOI transform without a range")
    if dataset.PhotometricInterpretation == "MONOCHROME1":
        values = (highest + lowest) - values
    scaled = (values - lowest) / (highest - lowest)
    return np.clip(scaled, 0.0, 1.0).astype(np.float32)


def _modality_values(stored: NDArray[np.int32], dataset: Dataset) -> NDArray[np.float64]:
    if dataset.get("ModalityLUTSequence"):
        return _looked_up(stored.astype(np.float64), dataset.ModalityLUTSequence[0], dataset)
    slope, intercept = _first(dataset, "RescaleSlope", 1.0), _first(dataset, "RescaleIntercept")
    return stored.astype(np.float64) * slope + intercept


def _modality_range(dataset: Dataset) -> tuple[float, float]:
    """Lowest and highest value that can leave the modality transform (PS3.3 C.11.2.1.2)."""
    if dataset.get("ModalityLUTSequence"):
        return 0.0, _lut_maximum(dataset.ModalityLUTSequence[0])
    bits = int(dataset.BitsStored)
    signed = dataset.PixelRepresentation == 1
    lowest, highest = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if signed else (0, 2**bits - 1)
    slope = _first(dataset, "RescaleSlope", 1.0)
    if not slope > 0:
        raise ValueError(f"rescale slope {slope:g} is not positive")
    intercept = _first(dataset, "RescaleIntercept")
    return lowest * slope + intercept, highest * slope + intercept


def _windowed(
    values: NDArray[np.float64], dataset: Dataset, lowest: float, highest: float
) -> NDArray[np.float64]:
    """The first window, PS3.3 C.11.2.1.2 and C.11.2.1.3, onto ``lowest`` to ``highest``."""
    centre, width = _first(dataset, "WindowCenter"), _first(dataset, "WindowWidth")
    function = str(dataset.get("VOILUTFunction") or "LINEAR").upper()
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        raise ValueError(f"unknown VOI LUT function {function!r}")
    if not (width >= 1 if function == "LINEAR" else width > 0):
        raise ValueError(f"window width {width:g} is too small")
    extent = highest - lowest
    if function == "SIGMOID":
        steepness = np.clip(-4 * (values - centre) / width, None, MAX_EXPONENT)
        return np.asarray(extent / (1 + np.exp(steepness)) + lowest)
    if function == "LINEAR":
        centre, width = centre - 0.5, width - 1
    below, above = values <= centre - width / 2, values > centre + width / 2
    between = ((values - centre) / (width or 1.0) + 0.5) * extent + lowest
    return np.select([below, above], [lowest, highest], between)


def _voi_lut(dataset: Dataset) -> Dataset | None:
    """The first VOI LUT. One without data is passed over where there is a window."""
    for item in list(dataset.get("VOILUTSequence") or ())[:1]:
        whole = item.get("LUTDescriptor") is not None and item.get("LUTData") is not None
        if whole or dataset.get("WindowCenter") is None:
            return Dataset(item)
    return None


def _looked_up(values: NDArray[np.float64], lut: Dataset, dataset: Dataset) -> NDArray[np.float64]:
    """Values through a table (PS3.3 C.11.1.1.1); those outside of it get its first or last."""
    count, first, bits = map(int, lut.LUTDescriptor)
    count = count or 2**16
    if bits not in LUT_BITS:
        raise ValueError(f"a lookup table of {bits} bits")
    data = lut.LUTData
    if isinstance(data, bytes):
        order = ">" if dataset.original_encoding[1] is False else "<"
        data = np.frombuffer(data, f"{order}u2" if len(data) >= 2 * count else "u1")
    table = np.asarray(data).reshape(-1)[:count].astype(np.float64)
    if len(table) < count:
        raise ValueError(f"a lookup table of {len(table)} entries, not of {count}")
    index = np.clip(np.trunc(values) - first, 0, count - 1).astype(np.int64)
    found = table[index]
    if found.max() > _lut_maximum(lut):
        raise ValueError(f"an entry {found.max():g} in a lookup table of {bits} bits")
    return np.asarray(found)


def _lut_maximum(lut: Dataset) -> float:
    return float(2 ** int(lut.LUTDescriptor[2]) - 1)


def _first(dataset: Dataset, name: str, default: float = 0.0) -> float:
    """The first value of an attribute; raises ``ValueError`` where it is no plausible number."""
    value = dataset.get(name)
    if value is None:
        return default
    number = float(value[0] if isinstance(value, MultiValue) else value)
    if not math.isfinite(number) or abs(number) > PLAUSIBLE:
        raise ValueError(f"{name} {number} is no number that a film has")
    return number


def _padding(dataset: Dataset) -> tuple[int, int] | None:
    """The least and largest stored value that is no part of the picture, or None."""
    value = dataset.get("PixelPaddingValue")
    if value is None:
        return None
    limit = dataset.get("PixelPaddingRangeLimit")
    ends = sorted((int(value), int(value if limit is None else limit)))
    return ends[0], ends[1]
