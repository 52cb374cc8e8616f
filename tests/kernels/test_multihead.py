"""The module that is called as ``nn.MultiheadAttention``, against it in fp64."""

import inspect
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hmc_fast.kernels import NOWHERE, MultiheadAttention

EMBED, HEADS, BATCH = 12, 3, 2


def pair(**settings: Any) -> tuple[nn.MultiheadAttention, MultiheadAttention]:
    """PyTorch's module with drawn parameters, and ours with the same."""
    torch.manual_seed(0)
    theirs = nn.MultiheadAttention(EMBED, HEADS, dtype=torch.float64, **settings)
    for parameter in theirs.parameters():
        nn.init.normal_(parameter)
    ours = MultiheadAttention(EMBED, HEADS, dtype=torch.float64, **settings)
    ours.load_state_dict(theirs.state_dict())
    return theirs, ours


def tokens(count: int, width: int, *, batch_first: bool = False, batch: int = BATCH) -> Tensor:
    shape = (batch, count, width) if batch_first else (count, batch, width)
    return torch.randn(shape, dtype=torch.float64, requires_grad=True)


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("batch_first", [True, False])
@pytest.mark.parametrize(("kdim", "vdim"), [(None, None), (5, 7)])
def test_outputs_weights_and_gradients_are_those_of_pytorch(
    bias: bool, batch_first: bool, kdim: int | None, vdim: int | None
) -> None:
    theirs, ours = pair(bias=bias, batch_first=batch_first, kdim=kdim, vdim=vdim)
    inputs = [
        tokens(4, EMBED, batch_first=batch_first),
        tokens(6, kdim or EMBED, batch_first=batch_first),
        tokens(6, vdim or EMBED, batch_first=batch_first),
    ]
    for average in (True, False):
        expected = theirs(*inputs, average_attn_weights=average)
        got = ours(*inputs, need_weights=True, average_attn_weights=average)
        torch.testing.assert_close(got, expected, rtol=1e-12, atol=1e-12)
    out, nothing = ours(*inputs)
    assert nothing is None
    upstream = torch.randn_like(out)
    leaves = [*inputs, *ours.parameters()]
    gradients = torch.autograd.grad(out, leaves, upstream)
    leaves = [*inputs, *theirs.parameters()]
    expected_gradients = torch.autograd.grad(theirs(*inputs)[0], leaves, upstream)
    torch.testing.assert_close(gradients, expected_gradients, rtol=1e-10, atol=1e-10)


def test_inputs_without_a_batch() -> None:
    theirs, ours = pair()
    x = torch.randn(5, EMBED, dtype=torch.float64)
    torch.testing.assert_close(ours(x, x, x, need_weights=True), theirs(x, x, x))


@pytest.mark.parametrize("batch_first", [True, False])
def test_several_sources_are_one_softmax_over_all_their_tokens(batch_first: bool) -> None:
    theirs, ours = pair(batch_first=batch_first)
    q = tokens(3, EMBED, batch_first=batch_first)
    ks = [tokens(n, EMBED, batch_first=batch_first) for n in (4, 9)]
    vs = [tokens(n, EMBED, batch_first=batch_first) for n in (4, 9)]
    along = 1 if batch_first else 0
    expected = theirs(q, torch.cat(ks, along), torch.cat(vs, along))
    torch.testing.assert_close(ours(q, ks, vs, need_weights=True), expected)


def test_the_state_goes_both_ways_and_first_values_are_drawn_alike() -> None:
    torch.manual_seed(1)
    theirs = nn.MultiheadAttention(EMBED, HEADS, kdim=5)
    torch.manual_seed(1)
    ours = MultiheadAttention(EMBED, HEADS, kdim=5)
    torch.testing.assert_close(dict(ours.state_dict()), dict(theirs.state_dict()))
    theirs.load_state_dict(ours.state_dict())


def test_every_backend_of_this_machine_agrees() -> None:
    x = torch.randn(BATCH, 40, EMBED)
    made = {name: MultiheadAttention(EMBED, HEADS, backend=name) for name in ("reference", "cpu")}
    made["cpu"].load_state_dict(made["reference"].state_dict())
    torch.testing.assert_close(made["cpu"](x, x, x), made["reference"](x, x, x))


@pytest.mark.parametrize(
    ("name", "value"), [("dropout", 0.1), ("add_bias_kv", True), ("add_zero_attn", True)]
)
def test_what_no_backend_does_is_refused_by_name_at_the_start(name: str, value: object) -> None:
    with pytest.raises(NotImplementedError, match=f"^{name}: no backend"):
        MultiheadAttention(EMBED, HEADS, **{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("key_padding_mask", torch.zeros(BATCH, 4, dtype=torch.bool)),
        ("attn_mask", torch.zeros(4, 4)),
        ("is_causal", True),
    ],
)
def test_masks_are_refused_by_name_in_a_call(name: str, value: object) -> None:
    x = torch.randn(4, BATCH, EMBED)
    with pytest.raises(NotImplementedError, match=f"^{name}: no backend") as error:
        MultiheadAttention(EMBED, HEADS)(x, x, x, **{name: value})
    assert NOWHERE[name] in str(error.value)


def test_every_argument_of_pytorch_is_taken_or_in_the_table() -> None:
    for method in ("__init__", "forward"):
        theirs = inspect.signature(getattr(nn.MultiheadAttention, method)).parameters
        ours = inspect.signature(getattr(MultiheadAttention, method)).parameters
        assert [*theirs] == [*ours][: len(theirs)]


def test_wrong_shapes_say_what_is_wrong() -> None:
    attention = MultiheadAttention(EMBED, HEADS)
    x = torch.randn(4, BATCH, EMBED)
    with pytest.raises(ValueError, match="2 keys and 1 values"):
        attention(x, [x, x], x)
    with pytest.raises(ValueError, match="value has 2 dimensions"):
        attention(x, x, x[0])
    with pytest.raises(ValueError, match="key has 1 dimensions"):
        attention(x, x[0, 0], x)
    with pytest.raises(ValueError, match="embed_dim 12 is no multiple of num_heads 5"):
        MultiheadAttention(EMBED, 5)


def test_the_layout_is_in_the_first_line_of_the_documentation() -> None:
    first = (MultiheadAttention.__doc__ or "").splitlines()[0]
    assert "[M, B, E]" in first
    assert "batch_first" in first
