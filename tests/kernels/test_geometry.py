"""The geometry is that of the model itself."""

import torch

from hmc_fast import create_model
from hmc_fast.kernels import geometry
from hmc_fast.models import HMCNet


def test_the_stages_of_the_model_have_this_geometry() -> None:
    height, width = 64, 96
    with torch.device("meta"):
        model = create_model("hmc_net", backend="reference").eval()
        maps = model.stages(torch.empty(1, 3, height, width))
    assert isinstance(model, HMCNet)
    for stage, feature_map in zip(geometry.HSA_STAGES, maps, strict=True):
        _, channels, rows, columns = feature_map.shape
        assert channels == geometry.CHANNELS[stage]
        assert (rows, columns) == (
            height // geometry.STRIDES[stage],
            width // geometry.STRIDES[stage],
        )
        assert geometry.tokens(stage, height, width) == rows * columns


def test_the_problems_are_those_of_the_models_blocks() -> None:
    with torch.device("meta"):
        model = create_model("hmc_net")
    assert isinstance(model, HMCNet)
    assert tuple(model.hsa) == tuple(stage.upper() for stage in geometry.HSA_STAGES)
    for stage in geometry.HSA_STAGES:
        problem = geometry.self_attention_problem(stage, 1024, 8)
        block = model.hsa[stage.upper()]
        assert (problem.heads, problem.v_head_dims) == (block.heads, block.value_head_dims)
        assert block.qk_proj.out_features == 2 * problem.heads * problem.qk_head_dim
        assert problem.tokens == (problem.queries,)
    problem = geometry.cross_attention_problem(1024, 8)
    assert model.msca is not None
    assert (problem.heads, problem.v_head_dims) == (model.msca.heads, model.msca.value_head_dims)
    assert (problem.queries, problem.tokens) == (1024, (16384, 4096))
    names = [p.name for p in geometry.model_problems()]
    assert len(names) == len(set(names)) == 12
