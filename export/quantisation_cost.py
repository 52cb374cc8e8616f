"""What quantisation costs on the films it was calibrated on, in each runtime at hand.

Runtimes compute a quantised graph with the integer instructions of the processor, so that one graph
may cost little in one of them and much in another. What was measured stands in the sidecar.
"""

import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hmc_fast.checkpoint import load_model
from hmc_fast.environment import cpu_name
from hmc_fast.errors import UserError
from hmc_fast.export.onnx_export import OnnxExport, write_onnx
from hmc_fast.export.runtime import SESSIONS, load
from hmc_fast.export.sidecar import Sidecar
from hmc_fast.export.verify import BOUNDS, Distance

MEASURED_FILMS = 24
"""Of the calibration films at most, evenly spread."""


def measure_cost(
    export: OnnxExport,
    checkpoint: Path,
    images: Sequence[Tensor],
    *,
    on_image: Callable[[int], object] = lambda count: None,
) -> OnnxExport:
    """``export`` with its distance from the checkpoint in ``sidecar.quantisation["measured"]``.

    That has the number of films, the processor, and by runtime the largest and mean difference of a
    logit, decisions that flip and those that flip beyond the bound; or why it was ``not_run`` or
    ``failed``. Of an engine it is the ONNX graph beside it that is measured.

    Args:
        export: a quantised graph.
        checkpoint: what it was made from.
        images: ``[3, H, W]``, the films of the calibration.
        on_image: told of every film that the model or a runtime has seen.
    """
    index = np.linspace(0, len(images) - 1, min(MEASURED_FILMS, len(images))).round()
    films = [images[int(i)] for i in index]
    model = load_model(checkpoint, backend="reference").model.eval()
    truth = _logits(model, films, on_image)
    assert export.sidecar.quantisation is not None
    bounds = BOUNDS[export.sidecar.numerics]
    runtimes: dict[str, dict[str, Any]] = {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "quantised.onnx"
        write_onnx(export, checkpoint, path)
        for name in SESSIONS:
            try:
                found = _logits(load(path, runtime=name), films, on_image)
            except UserError as error:
                reason = str(error).removeprefix(f"{path}: ")
                runtimes[name] = {"not_run": reason}
            except RuntimeError as error:
                runtimes[name] = {"failed": " ".join(str(error).split())}
            else:
                finite = np.isfinite(found).all()  # JSON has no other numbers
                cost = Distance.of(truth, found, bounds)
                runtimes[name] = asdict(cost) if finite else {"failed": "a logit is not finite"}
    measured = {"films": len(films), "processor": cpu_name(), "runtimes": runtimes}
    quantisation = {**export.sidecar.quantisation, "measured": measured}
    return replace(export, sidecar=replace(export.sidecar, quantisation=quantisation))


def describe_cost(sidecar: Sidecar) -> Iterator[tuple[str, bool]]:
    """A line for each runtime that was measured, and whether ``verify`` would pass it there."""
    measured = (sidecar.quantisation or {}).get("measured")
    if measured is None:
        return
    bound = BOUNDS[sidecar.numerics].logit
    for runtime, cost in measured["runtimes"].items():
        where = f"{sidecar.numerics} on {runtime}"
        if "not_run" in cost:
            yield f"{where}: not measured ({cost['not_run']})", True
        elif "failed" in cost:
            yield f"{where}: failed ({cost['failed']})", False
        else:
            kept = cost["max_logit_difference"] <= bound and not cost["flips_beyond"]
            yield (
                f"{where}: a logit moves by up to {cost['max_logit_difference']:.2f} (bound "
                f"{bound:g}), {cost['flips']} of {measured['films']} decisions on calibration "
                "films flip",
                kept,
            )


def _logits(
    model: Callable[[Tensor], Tensor], films: Sequence[Tensor], on_image: Callable[[int], object]
) -> NDArray[np.float64]:
    """``[films, classes]``, one film a call so that memory is that of one."""
    rows = []
    with torch.inference_mode():
        for film in films:
            rows.append(model(film[None]).double())
            on_image(1)
    return np.asarray(torch.cat(rows))
