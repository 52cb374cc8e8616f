"""Every form of attention at every precision against the model, on real films."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime
import pytest
import torch
from numpy.typing import NDArray
from samples import sampled
from torch import Tensor

from hmc_fast.checkpoint import load_model, save_checkpoint
from hmc_fast.data import TASKS, Film, FilmCache, FilmDataset, Preprocessing, read_mias
from hmc_fast.evaluation import Predictions
from hmc_fast.export import make_onnx
from hmc_fast.export.attention import FORMS
from hmc_fast.export.verify import BOUNDS, compare
from hmc_fast.kernels import multi_scale_attention
from hmc_fast.kernels.geometry import QK_HEAD_DIM
from hmc_fast.models import MultiScaleCrossAttention, attention_blocks
from hmc_fast.models.blocks import Attend

pytestmark = [pytest.mark.systems, pytest.mark.real_data]

FILMS = 24
SIDE = 224
LARGE_SCORE = 80.0
SCORES = ("scores as trained", "scores up to 80")
SAMPLED = [("equal-widths", "fp16")]
"""Blocks are also what ``verify`` runs on 40 films."""


@pytest.fixture(scope="module", params=sampled(SCORES, ["scores up to 80"]))
def checkpoint(
    request: pytest.FixtureRequest,
    trained_on_films: Path,
    films: tuple[list[Film], list[int]],
    tmp_path_factory: pytest.TempPathFactory,
) -> Path:
    """As trained on films, with attention that counts: a few steps hardly open its gates."""
    loaded = load_model(trained_on_films, backend="reference")
    metadata = replace(loaded.metadata, preprocessing=Preprocessing.square(SIDE))
    torch.manual_seed(0)
    with torch.no_grad():
        for block in attention_blocks(loaded.model):
            block.gamma.normal_(std=0.5)
    if request.param == "scores up to 80":
        enlarge_scores(loaded.model.eval(), images_of(films, metadata.preprocessing))
    path = tmp_path_factory.mktemp("open") / "model.safetensors"
    save_checkpoint(path, loaded.model, metadata)
    return path


def enlarge_scores(model: torch.nn.Module, images: Tensor) -> None:
    """Queries so long that the largest score of each block, on ``images``, is :data:`LARGE_SCORE`.

    In one pass: a block sees what the enlarged ones before it give.
    """
    factors: dict[torch.nn.Module, float] = {}

    def enlarged(block: torch.nn.Module) -> Attend:
        def attend(q: Tensor, ks: Sequence[Tensor], vs: Sequence[Tensor]) -> Any:
            largest = max(torch.einsum("bmhd,bnhd->bhmn", q, k).abs().max().item() for k in ks)
            factors[block] = LARGE_SCORE * QK_HEAD_DIM**0.5 / largest
            outs, _, weights = multi_scale_attention(q * factors[block], ks, vs)
            return outs, weights

        return attend

    for block in attention_blocks(model):
        block.attend = enlarged(block)
    with torch.inference_mode():
        model(images)
    for block in attention_blocks(model):
        del block.attend
        query = block.q_proj if isinstance(block, MultiScaleCrossAttention) else block.qk_proj
        with torch.no_grad():
            for parameter in query.parameters():
                parameter[: block.heads * QK_HEAD_DIM] *= factors[block]


def images_of(films: tuple[list[Film], list[int]], preprocessing: Preprocessing) -> Tensor:
    dataset = FilmDataset(*films, FilmCache(preprocessing))
    return torch.stack([dataset[i][0] for i in range(FILMS)])


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
    sampled(
        (
            (form, precision)
            for form, precision in product(FORMS, ("fp32", "fp16", "bf16"))
            if (form, precision) != ("nodes", "bf16")  # no CPU runtime at hand runs the node in it
        ),
        SAMPLED,
    ),
)
def test_logits_on_real_films(
    form: str, precision: str, checkpoint: Path, films: tuple[list[Film], list[int]]
) -> None:
    loaded = load_model(checkpoint, backend="reference")
    images = images_of(films, loaded.metadata.preprocessing)
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
