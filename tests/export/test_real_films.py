"""Every form of attention at every precision against the model, on real films."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray

from hmc_fast.checkpoint import load_model, save_checkpoint
from hmc_fast.data import TASKS, Film, FilmCache, FilmDataset, read_mias
from hmc_fast.evaluation import Predictions
from hmc_fast.export import make_onnx
from hmc_fast.export.attention import FORMS
from hmc_fast.export.verify import BOUNDS, compare
from hmc_fast.models import attention_blocks

pytestmark = [pytest.mark.systems, pytest.mark.real_data]

FILMS = 24
SAMPLED = (("equal-widths", "fp16"), ("nodes", "fp32"))
"""The rest is exhaustive; blocks are also what ``verify`` runs on 40 films."""


@pytest.fixture(scope="module")
def checkpoint(trained_on_films: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """As trained on films, with attention that counts: a few steps hardly open its gates."""
    loaded = load_model(trained_on_films)
    torch.manual_seed(0)
    with torch.no_grad():
        for block in attention_blocks(loaded.model):
            block.gamma.normal_(std=0.5)
    path = tmp_path_factory.mktemp("open") / "model.safetensors"
    save_checkpoint(path, loaded.model, loaded.metadata)
    return path


@pytest.fixture(scope="module")
def films(real_data: Path) -> tuple[list[Film], list[int]]:
    films, labels = TASKS["malignant"].select(read_mias(real_data / "mias"))
    chosen = [int(i) for i in np.linspace(0, len(films) - 1, FILMS)]
    return [films[i] for i in chosen], [labels[i] for i in chosen]


def in_onnx_runtime(content: bytes) -> Callable[[NDArray[np.float32]], Any]:
    session = onnxruntime.InferenceSession(content)
    return lambda images: session.run(None, {"images": images})[0]


def in_openvino(content: bytes) -> Callable[[NDArray[np.float32]], Any]:
    """It computes a bf16 graph on any CPU."""
    import openvino

    core = openvino.Core()
    hints = {"INFERENCE_PRECISION_HINT": "f32"}
    graph = core.compile_model(core.read_model(content), "CPU", hints)
    return lambda images: next(iter(graph([images]).values()))


@pytest.mark.parametrize(
    ("form", "precision"),
    [
        pytest.param(f, p, marks=() if (f, p) in SAMPLED else pytest.mark.exhaustive)
        for f in FORMS
        for p in ("fp32", "fp16", "bf16")
        if (f, p) != ("nodes", "bf16")  # no CPU runtime at hand runs the node in bf16
    ],
)
def test_logits_on_real_films(
    form: str, precision: str, checkpoint: Path, films: tuple[list[Film], list[int]]
) -> None:
    loaded = load_model(checkpoint, backend="reference")
    dataset = FilmDataset(*films, FilmCache(loaded.metadata.preprocessing))
    images = torch.stack([dataset[i][0] for i in range(FILMS)])
    with torch.inference_mode():
        expected = loaded.model(images).numpy()
    graph = make_onnx(checkpoint, precision=precision, engine_form=form).engine
    assert graph is not None
    run = in_openvino if precision == "bf16" else in_onnx_runtime
    found = np.array(run(graph.content)(images.numpy()))

    def predictions(logits: NDArray[Any]) -> Predictions:
        return Predictions.of(*films, 0, logits, loaded.metadata.class_names)

    row = compare(form, predictions(expected), predictions(found), BOUNDS[precision])
    assert row.status == "ok", row.reason
    assert expected.std() > 1e-2, "constant logits would prove nothing"
    assert precision == "fp32" or np.abs(found - expected).max() > 0
