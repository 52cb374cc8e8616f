"""Class activation maps and scale maps do not depend on the backend."""

import pytest
import torch
from scipy.stats import spearmanr

from hmc_fast import create_model
from hmc_fast.explain import ScoreOptions, activation_map, scale_map
from hmc_fast.models import HMCNet

LEAST_RANK_CORRELATION = 0.99


@pytest.fixture(scope="module")
def models() -> tuple[HMCNet, HMCNet]:
    """The same parameters behind both backends, with gates that are open."""
    torch.manual_seed(0)
    reference, fused = (
        create_model("hmc_net_resnet18", backend=backend).eval()
        for backend in ("reference", "triton")
    )
    with torch.no_grad():
        for name, parameter in reference.named_parameters():
            if name.endswith("gamma"):
                parameter.normal_()
    fused.load_state_dict(reference.state_dict())
    return reference, fused


@pytest.mark.parametrize("method", ["gradcam", "gradcam++", "scorecam", "scale"])
def test_both_backends_draw_the_same_maps(models: tuple[HMCNet, HMCNet], method: str) -> None:
    image = torch.randn(3, 96, 96, generator=torch.Generator().manual_seed(1))
    score = ScoreOptions(batch_size=4, channels=8)
    maps = []
    for model in models:
        if method == "scale":
            maps.append(scale_map(model, image).fine.ravel())
        else:
            maps.append(activation_map(model, image, method, 1, score=score).values.ravel())
    assert maps[0].std() > 0
    assert spearmanr(*maps).statistic >= LEAST_RANK_CORRELATION
