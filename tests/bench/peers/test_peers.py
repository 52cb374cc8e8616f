"""Every alternative computes what our operators compute, in whatever layout it wants."""

from collections.abc import Callable
from typing import Any, get_type_hints

import pytest
import torch
from torch import Tensor
from torch.nn.attention import SDPBackend
from torch.nn.attention.flex_attention import FlexKernelOptions

from hmc_fast.bench.cases import Case, Inputs, parse_case
from hmc_fast.bench.parity import budget_units, truth_of
from hmc_fast.bench.peers import PEERS, choose_peers, flex, peer, peer_names
from hmc_fast.bench.peers.layouts import bind_concatenated, bind_merged
from hmc_fast.bench.peers.peer import BoundCall, Peer, Variant, split_leaves
from hmc_fast.bench.peers.sdpa import SDPA_KERNELS, attend_by
from hmc_fast.bench.trials import AttentionTrials
from hmc_fast.kernels.testing import textbook_attention

CPU = torch.device("cpu")
CASES = ["hsa_c4@64x2", "msca_c5@64x2"]


def operators_of(peer: Peer, case: Case) -> list[Variant]:
    assert peer.operators is not None
    return peer.operators(case)


def plain(q: Tensor, k: Tensor, v: Tensor, scale: float) -> Tensor:
    return (q @ k.mT * scale).softmax(-1) @ v


def plain_with_lse(q: Tensor, k: Tensor, v: Tensor, scale: float) -> tuple[Tensor, Tensor]:
    scores = q @ k.mT * scale
    return scores.softmax(-1) @ v, scores.logsumexp(-1)


def truth(case: Case, inputs: Inputs) -> list[Tensor]:
    leaves = [x.double().requires_grad_() for x in inputs.leaves]
    outs, _, _ = textbook_attention(*split_leaves(leaves), case.attention.scale)
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
    for chosen in choose_peers(["sdpa_flash", "sdpa_math", "eager"], "operator", CPU):
        assert chosen.why_not(case, torch.float32, CPU) is None
        for variant in operators_of(chosen, case):
            call = variant.bind(case, inputs)
            if "backward" in variant.tasks:
                assert budget_units(checked.check(results(call))) <= 1, variant.name
            with torch.no_grad():
                use = checked.check(call.results(call.forward()))
            assert budget_units(use) <= 1, (variant.name, str(use))
            ran.add((chosen.name, variant.name))
    assert len(ran) == (4 if case.attention.sources > 1 else 3)


def test_flex_has_a_way_for_every_set_of_options_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Compiled for a GPU they cannot be here: what the compiler is asked for is what is seen."""
    asked: list[dict[str, Any]] = []

    def attend(q: Tensor, k: Tensor, v: Tensor, *, scale: float, kernel_options: Any) -> Tensor:
        asked.append(kernel_options)
        return plain(q, k, v, scale)

    monkeypatch.setattr(flex, "flex_attention", attend)
    monkeypatch.setattr(flex, "_compiled", lambda function, mode: function)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    case = parse_case("hsa_c4@64x2")
    inputs = case.inputs(torch.float32, CPU, 0)
    names = []
    for variant in operators_of(peer("flex"), case):
        with torch.no_grad():
            variant.bind(case, inputs).forward()
        names.append(variant.name)
    assert asked == [*(o or None for o in flex.KERNEL_OPTIONS.values()), None]
    assert names[-1] == "one call, max-autotune"
    for options in flex.KERNEL_OPTIONS.values():
        known = get_type_hints(FlexKernelOptions)
        assert set(options) <= set(known)
        if "BLOCK_M" in options:  # what the backward's kernels ask of their tiles
            assert options["BLOCK_N1"] % options["BLOCK_M1"] == 0
            assert options["BLOCK_M2"] % options["BLOCK_N2"] == 0


def test_a_wrong_head_or_gradient_exceeds_the_budget() -> None:
    case = parse_case("hsa_c4@64x2")
    inputs = case.inputs(torch.float32, CPU, 0)
    checked = truth_of(case, inputs)
    right = [
        x.detach().clone() for x in results(operators_of(peer("eager"), case)[0].bind(case, inputs))
    ]
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
    trials = AttentionTrials(case, torch.float32, CPU)
    call = trials.variants(peer("eager"))[0].bind(case, inputs)
    within = checked.check(results(call))
    assert within.within
    outside = [result.detach() * 1.01 for result in results(call)]
    assert not checked.check(outside).within


def test_peers_of_operators_run_blocks_too() -> None:
    assert peer_names("block") == peer_names("operator")


def test_every_peer_says_its_name_colour_and_help_once() -> None:
    assert len({p.name for p in PEERS}) == len(PEERS)
    assert all(p.help and p.colour.startswith("#") for p in PEERS)
    assert all(p.does("operator") or p.does("model") for p in PEERS)


def test_a_model_without_attention_has_no_row_of_other_attention() -> None:
    for name in ("vgg16@224x1", "vit_b_16@224x1", "resnet18@64x1"):
        case = parse_case(name)
        for peer_name in ("triton", "triton_compiled", "sdpa", "flex"):
            reason = peer(peer_name).why_not(case, torch.float32, CPU)
            assert reason == "the model has no attention"
        assert peer("eager").why_not(case, torch.float32, CPU) is None


def test_what_cannot_run_here_says_why() -> None:
    case = parse_case("hsa_c4@64x1")
    reasons = {p.name: p.why_not(case, torch.float32, CPU) for p in PEERS if p.does("operator")}
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
    for chosen in choose_peers(
        ["triton", *(sdpa.name for sdpa in SDPA_KERNELS)], "operator", device
    ):
        if chosen.why_not(case, torch.bfloat16, device) is not None:
            continue
        for variant in operators_of(chosen, case):
            call = variant.bind(case, inputs)
            try:
                with torch.no_grad():
                    outs = call.forward()
            except RuntimeError:  # refused for this GPU or these head dims
                continue
            use = checked.check(call.results(outs))
            assert use.within, (chosen.name, variant.name, str(use))
            ran.append(chosen.name)
    assert {"triton", "sdpa_flash", "sdpa_math"} <= set(ran)
