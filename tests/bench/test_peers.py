"""Every alternative computes what our operators compute, in whatever layout it wants."""

from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend

from hmc_fast.bench.cases import Case, Inputs, parse_case
from hmc_fast.bench.kernel_bench import OPERATOR_PEERS, PEER_NAMES, case_peers
from hmc_fast.bench.kernel_parity import budget_units, truth_of
from hmc_fast.bench.layouts import bind_concatenated, bind_merged
from hmc_fast.bench.peers import EAGER, BoundCall
from hmc_fast.bench.peers_block import block_peers
from hmc_fast.bench.peers_sdpa import SDPA_BACKENDS, attend_by
from hmc_fast.kernels.testing import textbook_attention

CPU = torch.device("cpu")
CASES = ["hsa_c4@64x2", "msca_c5@64x2"]


def plain(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    return (q @ k.mT * scale).softmax(-1) @ v


def plain_with_lse(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    scores = q @ k.mT * scale
    return scores.softmax(-1) @ v, scores.logsumexp(-1)


def truth(case: Case, inputs: Inputs) -> list[Tensor]:
    leaves = [x.double().requires_grad_() for x in inputs.leaves]
    sources = len(inputs.ks)
    outs, _, _ = textbook_attention(
        leaves[0], leaves[1 : 1 + sources], leaves[1 + sources :], case.qk_head_dim**-0.5
    )
    gradients = torch.autograd.grad(outs, leaves, [d.double() for d in inputs.d_outs])
    return [*outs, *gradients]


def results(call: BoundCall) -> list[Tensor]:
    outs = call.forward()
    gradients = torch.autograd.grad(outs, call.leaves, call.d_outs)
    return call.results(outs) + call.gradients(gradients)


LAYOUTS: dict[str, Callable[[Case, Inputs], BoundCall]] = {
    "concatenated, one call": lambda c, i: bind_concatenated(
        plain, c, i, equal_head_dims=False, one_call=True
    ),
    "concatenated, one call, padded": lambda c, i: bind_concatenated(
        plain, c, i, equal_head_dims=True, one_call=True
    ),
    "concatenated, a call per source": lambda c, i: bind_concatenated(
        plain, c, i, equal_head_dims=False, one_call=False
    ),
    "concatenated, a call per source, padded": lambda c, i: bind_concatenated(
        plain, c, i, equal_head_dims=True, one_call=False
    ),
    "merged": lambda c, i: bind_merged(plain_with_lse, c, i, equal_head_dims=False),
    "merged, padded": lambda c, i: bind_merged(plain_with_lse, c, i, equal_head_dims=True),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", CASES)
def test_layouts_give_outputs_and_gradients_of_the_case(name: str, layout: str) -> None:
    case = parse_case(name)
    inputs = case.inputs(torch.float64, CPU, 0)
    expected = truth(case, inputs)
    actual = results(LAYOUTS[layout](case, inputs))
    assert [a.shape for a in actual] == [e.shape for e in expected]
    for a, e in zip(actual, expected, strict=True):
        torch.testing.assert_close(a, e)


@pytest.mark.parametrize("name", CASES)
def test_peers_of_this_machine_are_within_the_budget(name: str) -> None:
    case = parse_case(name)
    inputs = case.inputs(torch.float32, CPU, 0)
    checked = truth_of(case, inputs)
    ran = set()
    for peer in case_peers(case, ["sdpa_flash", "sdpa_math", "eager"]):
        assert peer.why_not(case, torch.float32, CPU) is None
        for variant in peer.variants(case):
            call = variant.bind(case, inputs)
            if "backward" in variant.passes:
                assert budget_units(checked.check(results(call))) <= 1, variant.how
            with torch.no_grad():
                use = checked.check(call.results(call.forward()))
            assert budget_units(use) <= 1, (variant.how, str(use))
            ran.add((peer.name, variant.how))
    assert len(ran) == (4 if len(case.tokens) > 1 else 3)


def test_a_wrong_head_or_gradient_exceeds_the_budget() -> None:
    case = parse_case("hsa_c4@64x2")
    inputs = case.inputs(torch.float32, CPU, 0)
    checked = truth_of(case, inputs)
    right = [x.detach().clone() for x in results(EAGER.variants(case)[0].bind(case, inputs))]
    assert checked.check(right).within
    for i, name in enumerate(("outs[0]", "d q", "d ks[0]", "d vs[0]")):
        wrong = [x.clone() for x in right]
        wrong[i][-1, 3, -1, 5] += 1e-3
        use = checked.check(wrong)
        assert not use.within
        assert use.name == name
    wrong = [x.clone() for x in right]
    wrong[0][0, 0, 0, 0] = float("nan")
    assert budget_units(checked.check(wrong)) == float("inf")


def test_blocks_agree_with_the_textbook_block() -> None:
    case = parse_case("hsa_block_c3@64x2")
    inputs = case.inputs(torch.float32, CPU, 0)
    checked = truth_of(case, inputs)
    (eager,) = (peer for peer in block_peers() if peer.name == "eager")
    call = eager.variants(case)[0].bind(case, inputs)
    within = checked.check(results(call))
    assert within.within
    outside = [result.detach() * 1.01 for result in results(call)]
    assert not checked.check(outside).within


def test_blocks_have_a_row_for_every_peer() -> None:
    assert {peer.name for peer in block_peers()} == set(PEER_NAMES)


def test_what_cannot_run_here_says_why() -> None:
    case = parse_case("hsa_c4@64x1")
    reasons = {p.name: p.why_not(case, torch.float32, CPU) for p in OPERATOR_PEERS}
    assert "GPU" in (reasons["triton"] or "")
    assert "GPU" in (reasons["sdpa_cudnn"] or "")
    assert reasons["eager"] is None
    q = torch.randn(1, 1, 4, 64)
    with pytest.raises(RuntimeError, match="No viable backend"):
        attend_by(SDPBackend.CUDNN_ATTENTION, q, q, q, 1.0)


@pytest.mark.gpu
@pytest.mark.parametrize("name", CASES)
def test_sdpa_and_triton_on_a_gpu_are_within_the_budget(name: str) -> None:
    device = torch.device("cuda")
    case = parse_case(name)
    inputs = case.inputs(torch.bfloat16, device, 0)
    checked = truth_of(case, inputs)
    ran = []
    for peer in case_peers(case, ["triton", *(sdpa.name for sdpa in SDPA_BACKENDS)]):
        if peer.why_not(case, torch.bfloat16, device) is not None:
            continue
        for variant in peer.variants(case):
            call = variant.bind(case, inputs)
            try:
                with torch.no_grad():
                    outs = call.forward()
            except RuntimeError:  # refused for this GPU or these head dims
                continue
            use = checked.check(call.results(outs))
            assert use.within, (peer.name, variant.how, str(use))
            ran.append(peer.name)
    assert {"triton", "sdpa_flash", "sdpa_math"} <= set(ran)
