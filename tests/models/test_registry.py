"""What an entry says of a model is true of the model."""

import pytest
import torch

from hmc_fast import UserError, create_model
from hmc_fast.models import (
    MODEL_NAMES,
    HierarchicalSelfAttention,
    HMCNet,
    MultiScaleCrossAttention,
)
from hmc_fast.models import model_entry as entry_of
from hmc_fast.models.lesion_head import LesionHead


@pytest.mark.parametrize("name", MODEL_NAMES)
def test_entries_describe_their_models(name: str) -> None:
    entry = entry_of(name)
    classes = 2 if entry.config.lesion_head else 5
    with torch.device("meta"):
        model = create_model(name, num_classes=classes)
    head = [p for key, p in model.named_parameters() if key.startswith(entry.head)]
    assert [len(parameter) for parameter in head] == [classes, classes]
    assert entry.is_resnet == isinstance(model, HMCNet)
    assert entry.config.lesion_head == any(isinstance(m, LesionHead) for m in model.modules())
    assert entry.cam_layer(model) in dict(model.named_modules())
    assert entry.fixed_size == (model.config.image_size is not None)
    blocks = (HierarchicalSelfAttention, MultiScaleCrossAttention)
    assert entry.has_attention == any(isinstance(m, blocks) for m in model.modules())


def test_an_unknown_name_lists_those_known() -> None:
    with pytest.raises(UserError, match="unknown model 'resnet34'; choose one of hmc_net, "):
        entry_of("resnet34")
