"""The scale map."""

import numpy as np
import pytest
import torch

from hmc_fast import UserError, create_model
from hmc_fast.explain import scale_map
from hmc_fast.models import FilmModel


def test_sums_to_one_everywhere_and_is_the_models_own(model: FilmModel) -> None:
    image = torch.randn(3, 96, 160)
    found = scale_map(model, image)
    assert found.shares.shape == (2, 96, 160)
    np.testing.assert_allclose(found.shares.sum(0), 1, atol=1e-6)
    assert found.shares.min() >= 0
    with torch.no_grad():
        _, weights = model.forward_with_scale_weights(image[None])
    expected = weights[0].mean((0, 1, 2))
    assert list(found.film_shares.values()) == pytest.approx(expected.tolist(), abs=1e-5)
    assert sum(found.film_shares.values()) == pytest.approx(1)
    # Interpolation stays between the values that it starts from.
    low, high = weights[0].mean(0)[..., 0].min(), weights[0].mean(0)[..., 0].max()
    assert low - 1e-6 <= found.fine.min()
    assert found.fine.max() <= high + 1e-6


def test_attention_without_preference_gets_the_shares_by_token_count() -> None:
    model = create_model("hmc_net_resnet18").eval()
    torch.nn.init.zeros_(model.msca.q_proj.weight)
    found = scale_map(model, torch.randn(3, 64, 64))
    assert found.token_shares == {"C3": pytest.approx(0.8), "C4": pytest.approx(0.2)}
    assert found.film_shares == {"C3": pytest.approx(0.8), "C4": pytest.approx(0.2)}
    np.testing.assert_allclose(found.fine, 0.8, rtol=1e-5)


def test_the_models_mode_does_not_matter(model: FilmModel) -> None:
    image = torch.randn(3, 64, 64)
    expected = scale_map(model, image).shares
    model.train()
    try:
        np.testing.assert_array_equal(scale_map(model, image).shares, expected)
        assert model.training
    finally:
        model.eval()


def test_a_model_without_cross_attention_has_none() -> None:
    with pytest.raises(UserError, match="resnet18_hsa has no multi-scale cross-attention"):
        scale_map(create_model("resnet18_hsa"), torch.randn(3, 64, 64))
