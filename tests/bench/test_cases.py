"""Named cases, their work and the models' cases."""

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from hmc_fast import UserError
from hmc_fast.bench.cases import parse_case
from hmc_fast.bench.jobs.presets import MODEL_CASES, OPERATOR_CASES
from hmc_fast.bench.measuring.roofline import Work, work_of
from hmc_fast.kernels.geometry import MSCA_HEADS
from hmc_fast.models import HierarchicalSelfAttention


def test_shapes_of_the_stages() -> None:
    c3 = parse_case("hsa_c3@1024x8").attention
    assert (c3.batch, c3.heads, c3.queries, c3.tokens, c3.v_head_dims) == (
        8,
        2,
        16384,
        (16384,),
        (256,),
    )
    assert parse_case("hsa_c5@224").attention.queries == 49
    msca = parse_case("msca_c5@512x2").attention
    assert (msca.heads, msca.queries) == (MSCA_HEADS, 256)
    assert (msca.tokens, msca.v_head_dims) == ((4096, 1024), (128, 256))


def test_blocks_have_the_heads_of_the_model() -> None:
    for name, channels in (("hsa_block_c3@64", 512), ("hsa_block_c4@64", 1024)):
        case, block = parse_case(name), HierarchicalSelfAttention(channels)
        assert case.attention.heads == block.heads
        assert case.attention.v_head_dims == block.value_head_dims


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hsa_c3", "cases look like"),
        ("hsa_c6@224", "cases look like"),
        ("hsa_c3@100x1", "multiple of 32"),
        ("hsa_c3@0", "multiple of 32"),
        ("hsa_c3@64x0", "batch"),
        ("msca_c4@224", "c5 alone"),
    ],
)
def test_wrong_names_are_explained(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_case(name)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("hmc_net", "cases look like"),
        ("resnet34@224x1", "unknown model"),
        ("hmc_net@100x1", "multiple of 32"),
        ("hmc_net@96x0", "batch"),
        ("hmc_net@96x1/learning", "cases look like"),
    ],
)
def test_wrong_model_cases_are_explained(name: str, message: str) -> None:
    with pytest.raises(UserError, match=message):
        parse_case(name)


def test_presets_parse() -> None:
    for names in OPERATOR_CASES.values():
        assert [parse_case(name).label for name in names] == list(names)
    for names in MODEL_CASES.values():
        assert len({case.label for case in map(parse_case, names)}) == len(names)


def test_a_command_refuses_cases_of_another_kind() -> None:
    with pytest.raises(UserError, match="use bench kernels"):
        parse_case("hsa_c3@64", ("model",))
    with pytest.raises(UserError, match="bench model for models"):
        parse_case("vgg16@64", ("operator", "block"))
    assert parse_case("hsa_c3@64x1/forward").tasks == ("forward",)


def test_a_models_problems_are_those_of_its_blocks() -> None:
    cpu = torch.device("cpu")
    problems = parse_case("hmc_net_resnet18@64x3").problems(torch.float16, cpu)
    assert [p.v_head_dims for p in problems] == [(128,), (256,), (256,), (32, 64)]
    assert [p.queries for p in problems] == [64, 16, 4, 4]
    assert {(p.batch, p.dtype) for p in problems} == {(3, torch.float16)}
    assert not parse_case("vgg16@224x1").problems(torch.float16, cpu)


def test_inputs_are_drawn_anew_for_each_seed_and_again_for_the_same() -> None:
    case, cpu = parse_case("msca_c5@32x2"), torch.device("cpu")
    first, again, other = (case.inputs(torch.float16, cpu, seed) for seed in (0, 0, 1))
    assert torch.equal(first.q, again.q)
    assert not torch.equal(first.q, other.q)
    assert [v.shape for v in first.vs] == [(2, 16, 4, 128), (2, 4, 4, 256)]
    assert [d.shape for d in first.d_outs] == [(2, 1, 4, 128), (2, 1, 4, 256)]


def test_operations_are_those_that_the_operators_count() -> None:
    from hmc_fast.kernels import multi_scale_attention

    case = parse_case("msca_c5@64x2")
    inputs = case.inputs(torch.float32, torch.device("cpu"), 0)
    with FlopCounterMode(display=False) as counter:
        multi_scale_attention(inputs.q, inputs.ks, inputs.vs, backend="reference")
    counted = sum(v for op, v in counter.get_flop_counts()["Global"].items() if "hmc" in str(op))
    assert work_of(case, "forward", torch.float32).flops == counted


def test_a_blocks_operations_are_its_matrix_products() -> None:
    case = parse_case("hsa_block_c3@64x1")
    with torch.device("meta"):
        block = HierarchicalSelfAttention(case.channels, "reference")
        x = torch.empty(1, case.channels, 8, 8)
    with FlopCounterMode(display=False) as counter:
        block(x)
    assert work_of(case, "forward", torch.float32).flops == counter.get_total_flops()


def test_bytes_read_inputs_and_write_outputs_once() -> None:
    case = parse_case("hsa_c5@64x3")
    inputs = case.inputs(torch.bfloat16, torch.device("cpu"), 0)
    tensors = [*inputs.leaves, *inputs.d_outs]
    moved = sum(t.numel() * t.element_size() for t in tensors)
    lse = 4 * case.batch * case.attention.heads * case.attention.queries
    assert work_of(case, "forward", torch.bfloat16).bytes == moved + lse


def test_the_floor_is_the_larger_time() -> None:
    work = Work(flops=2 * 10**12, bytes=10**9)
    assert work.floor_ms(1e12, 1e12) == pytest.approx(2000)
    assert work.bound(1e12, 1e12) == "compute"
    assert work.floor_ms(1e15, 1e9) == pytest.approx(1000)
    assert work.bound(1e15, 1e9) == "memory"
